import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { gunzipSync } from 'node:zlib'
import { hasCode } from '../testing/errors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { DEFAULT_LIMITS } from './layer/limits.js'
import { LayerWriter } from './layer-file.js'

const sha256 = (bytes: Buffer) => `sha256:${createHash('sha256').update(bytes).digest('hex')}`

describe('the file of a layer', () => {
  it('is packed, and described by the digests of both its forms', async (t) => {
    const file = path.join(await temporaryFolder(t), 'layer')
    const writer = new LayerWriter(file, DEFAULT_LIMITS)
    const pieces = Array.from({ length: 40 }, () => randomBytes(100_000))
    for (const piece of pieces) await writer.write(piece)
    const written = await writer.finish()
    await writer.discard() // as whoever has finished does, too
    const bytes = await readFile(file)
    assert.deepEqual(gunzipSync(bytes), Buffer.concat(pieces))
    assert.deepEqual(written, {
      file,
      descriptor: {
        mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
        digest: sha256(bytes),
        size: bytes.length,
      },
      diffId: sha256(Buffer.concat(pieces)),
    })
  })

  it('is the same for the same content', async (t) => {
    const folder = await temporaryFolder(t)
    const digests = []
    for (const name of ['one', 'two']) {
      const writer = new LayerWriter(path.join(folder, name), DEFAULT_LIMITS)
      await writer.write(Buffer.alloc(300_000, 'text'))
      digests.push((await writer.finish()).descriptor.digest)
    }
    assert.equal(digests[0], digests[1])
  })

  it('ends when it has more than an image may have', async (t) => {
    const file = path.join(await temporaryFolder(t), 'layer')
    const writer = new LayerWriter(file, { ...DEFAULT_LIMITS, maxBytes: 1_000 })
    await writer.write(Buffer.alloc(1_000))
    await assert.rejects(writer.write(Buffer.alloc(1)), hasCode('image-too-large'))
    await writer.discard()
  })

  it('fails while it is written, and at its end, when the file cannot be', async (t) => {
    const file = path.join(await temporaryFolder(t), 'layer')
    await writeFile(file, 'of somebody')
    const writer = new LayerWriter(file, DEFAULT_LIMITS)
    const writing = (async () => {
      for (;;) await writer.write(randomBytes(100_000))
    })()
    await assert.rejects(writing, { code: 'EEXIST' })
    await assert.rejects(writer.finish(), { code: 'EEXIST' })
    assert.equal(await readFile(file, 'utf8'), 'of somebody')
  })
})
