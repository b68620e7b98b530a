import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it, type TestContext } from 'node:test'
import { openDescriptors } from '../../testing/descriptors.js'
import { hasCode } from '../../testing/errors.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { DEFAULT_LIMITS } from '../layer/limits.js'
import { parseConfiguration, parseDocument } from '../manifest.js'
import { digestOf } from '../testing/image-corpus.js'
import { documentOf } from '../testing/memory-image.js'
import { file, gzip, tar } from '../testing/tar-builder.js'
import { openRootfsTar } from './rootfs-tar.js'
import type { Descriptor, ImageSource } from './source.js'

const platform = { os: 'linux', architecture: 'arm64', variant: 'v8' }
const options = { platform, limits: DEFAULT_LIMITS }
const rootfs = tar(file('etc/hostname', 'x'))

async function written(t: TestContext, bytes: Buffer): Promise<string> {
  const path = join(await temporaryFolder(t), 'rootfs.tar')
  await writeFile(path, bytes)
  return path
}

async function read(source: ImageSource, descriptor: Descriptor, offset = 0): Promise<Buffer> {
  const { stream, startsAt } = await source.openBlob(descriptor, offset)
  assert.equal(startsAt, offset)
  const parts: Buffer[] = []
  for await (const part of stream) parts.push(part as Buffer)
  return Buffer.concat(parts)
}

for (const [kind, bytes] of [
  ['plain', rootfs],
  ['packed', gzip(rootfs)],
] as const) {
  it(`a ${kind} tar is an image of one layer`, async (t) => {
    const source = await openRootfsTar(await written(t, bytes), options)
    const parsed = parseDocument(await source.root())
    assert.ok(parsed.kind === 'manifest')
    const { config, layers } = parsed.manifest
    const configuration = parseConfiguration(documentOf(await read(source, config)))
    assert.equal(configuration.platform, 'linux/arm64/v8')
    assert.deepEqual(configuration.diffIds, [digestOf(rootfs)])
    assert.deepEqual(configuration.config.cmd, ['/bin/sh'])
    const [layer] = layers
    assert.ok(layer)
    assert.deepEqual([layer.digest, layer.size], [digestOf(bytes), bytes.length])
    assert.deepEqual(await read(source, layer, 10), bytes.subarray(10))
    await assert.rejects(source.manifest(layer), hasCode('image-not-found'))
  })
}

it('what cannot be unpacked names the file, and leaves no descriptor', async (t) => {
  const before = await openDescriptors()
  const cut = await written(t, gzip(rootfs).subarray(0, 50))
  await assert.rejects(
    openRootfsTar(cut, options),
    hasCode('layer-invalid', /cannot read .*rootfs\.tar: gzip: unexpected end/),
  )
  const xz = await written(t, Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0]))
  await assert.rejects(openRootfsTar(xz, options), hasCode('layer-invalid', /compressed with xz/))
  const whole = await written(t, rootfs)
  await assert.rejects(openRootfsTar(whole, { ...options, signal: AbortSignal.abort(new Error('enough')) }), /enough/)
  assert.deepEqual(await openDescriptors(), before)
})

it('a file that is not there is not found', async () => {
  await assert.rejects(
    openRootfsTar('/nowhere/rootfs.tar', options),
    hasCode('file-not-found', /\/nowhere\/rootfs\.tar/),
  )
})

it('a small file that unpacks to more than an image may have is left as soon as that shows', async (t) => {
  const before = await openDescriptors()
  const bomb = await written(t, gzip(tar(file('etc/zeros', Buffer.alloc(8_000_000)))))
  const limits = { ...DEFAULT_LIMITS, maxBytes: 1_000_000 }
  const told: string[] = []
  await assert.rejects(
    openRootfsTar(bomb, { platform, limits, onActivity: (what) => told.push(what) }),
    hasCode('image-too-large', /cannot read .*rootfs\.tar: its files have over 1000000 bytes/),
  )
  assert.deepEqual(told, [`hashing ${bomb}`])
  assert.deepEqual(await openDescriptors(), before)
})
