import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { digestOf, imageCases, isGood, layersOf, withRoot } from '../testing/image-corpus.js'
import { diskTar, indexLayers, type LayerSpec, listing } from '../testing/image-listing.js'
import { file, gzip, header, tar } from '../testing/tar-builder.js'

const MIB = 1024 * 1024

describe(`${imageCases.length} hostile or odd images`, () => {
  for (const each of imageCases) {
    it(`${isGood(each) ? 'takes' : 'refuses'} an image with ${each.name}`, async () => {
      const warnings: string[] = []
      const read = async (layers: LayerSpec[]) =>
        listing(await diskTar(await indexLayers(layers, each.limits, (message) => warnings.push(message))))
      if (!isGood(each)) {
        const { code, message } = each.expect as { code: 'layer-invalid'; message: RegExp }
        await assert.rejects(read(layersOf(each)), hasCode(code, message))
        return
      }
      assert.deepEqual(await read(layersOf(each)), withRoot(each.expect))
      const { warnings: expected = [] } = each
      assert.equal(warnings.length, expected.length, warnings.join('\n'))
      for (const [index, warning] of expected.entries()) assert.match(warnings[index] ?? '', warning)
    })
  }

  it('has a name of its own for each', () => {
    const names = imageCases.map(({ name }) => name)
    assert.deepEqual(
      names.filter((name, index) => names.indexOf(name) !== index),
      [],
    )
  })
})

it('refuses a layer that unpacks to something else than the configuration says', async () => {
  const layer = { blob: tar(file('a')), diffId: digestOf(Buffer.from('else')) }
  await assert.rejects(indexLayers([layer]), hasCode('digest-mismatch', /sha256:of-the-blob unpacks to something/))
})

it('names the layer that it refuses', async () => {
  const layer = { blob: tar(file('../a')), diffId: '' }
  await assert.rejects(indexLayers([layer]), hasCode('layer-hostile', /^layer sha256:of-the-blob: "\.\.\/a" leads out/))
})

it('ends a gzip of a GiB as soon as its limit is reached, and holds nothing of it', async () => {
  const bomb = Buffer.concat([gzip(tar(file('a'))), ...Array.from({ length: 64 }, () => sixteenMib)])
  const before = process.memoryUsage().rss
  const startedAt = performance.now()
  const attempt = indexLayers([{ blob: bomb, diffId: '' }], { maxBytes: 64 * MIB })
  await assert.rejects(attempt, hasCode('image-too-large', /over 67108864 bytes/))
  assert.ok(performance.now() - startedAt < 5000)
  assert.ok(process.memoryUsage().rss - before < 100 * MIB, `${(process.memoryUsage().rss - before) / MIB} MiB`)
})
const sixteenMib = gzip(Buffer.alloc(16 * MIB))

it('reads a map of a sparse file that goes on for ever in no more time than its bytes take', async () => {
  const pairs = Buffer.alloc(512)
  for (let index = 0; index < 21; index++) pairs.write('00000000000\x0000000000000\0', index * 24, 'latin1')
  pairs[504] = 1
  const empty = Buffer.alloc(512)
  empty[504] = 1
  const head = header({ path: 's', type: 'S', format: 'gnu', edit: (bytes) => bytes.fill(1, 482, 483) }, 0)
  const endless = Buffer.concat([head, ...Array(1500).fill(pairs), ...Array(60_000).fill(empty)])
  const startedAt = performance.now()
  await assert.rejects(indexLayers([{ blob: endless, diffId: '' }]), hasCode('layer-invalid', /map of a sparse file/))
  assert.ok(performance.now() - startedAt < 3000, `${performance.now() - startedAt} ms`)
})

const hasZstd = spawnSync('zstd', ['--version']).status === 0
describe('a layer of zstd', { skip: hasZstd ? false : 'zstd is not installed' }, () => {
  const unpacked = tar(file('a', 'hello'))
  const packed = spawnSync('zstd', ['-q'], { input: unpacked }).stdout
  const diffId = digestOf(unpacked)
  const read = async (blob: Buffer) => listing(await diskTar(await indexLayers([{ blob, diffId }])))

  it('is read', async () => {
    assert.deepEqual(await read(packed), withRoot({ a: 'file 644 0:0 5 "hello"' }))
  })

  it('is read behind a frame to be skipped', async () => {
    const skippable = Buffer.from([0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3])
    assert.deepEqual(await read(Buffer.concat([skippable, packed])), withRoot({ a: 'file 644 0:0 5 "hello"' }))
  })

  it('is refused when it is cut short or broken', async () => {
    await assert.rejects(read(packed.subarray(0, -8)), hasCode('layer-invalid', /zstd: /))
    await assert.rejects(read(Buffer.concat([packed, Buffer.from('garbage')])), hasCode('layer-invalid', /zstd: /))
  })

  it('of a GiB is ended as soon as its limit is reached', async () => {
    const bomb = spawnSync('zstd', ['-q'], { input: Buffer.alloc(256 * MIB), maxBuffer: 2 ** 30 }).stdout
    const layers = [{ blob: Buffer.concat([bomb, bomb, bomb, bomb]), diffId: '' }]
    await assert.rejects(indexLayers(layers, { maxBytes: 32 * MIB }), hasCode('image-too-large'))
  })
})
