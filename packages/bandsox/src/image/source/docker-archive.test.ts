import assert from 'node:assert/strict'
import { it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { parseConfiguration, parseDocument } from '../manifest.js'
import { digestOf } from '../testing/image-corpus.js'
import { dockerFiles, documentOf, json, memoryFiles, memoryImage } from '../testing/memory-image.js'
import { file, tar } from '../testing/tar-builder.js'
import { isDockerArchive, openDockerArchive } from './docker-archive.js'

const layers = [tar(file('a', '1')), tar(file('b', '2'))]
const image = memoryImage(layers)
const archive = (names: string[] = ['app:latest']) => dockerFiles(image, layers, names)

const withManifest = (value: unknown) => memoryFiles(new Map([...archive(), ['manifest.json', json(value)]]))
const one = { Config: 'config.json', RepoTags: ['one:1'], Layers: ['0/layer.tar'] }

it('an archive becomes an image with digests', async () => {
  const files = memoryFiles(archive())
  assert.equal(await isDockerArchive(files), true)
  const source = await openDockerArchive(files, undefined)
  assert.deepEqual(source.names, ['app:latest'])
  const parsed = parseDocument(await source.root())
  assert.ok(parsed.kind === 'manifest')
  assert.deepEqual(
    parsed.manifest.layers.map(({ digest, size }) => [digest, size]),
    layers.map((each) => [digestOf(each), each.length]),
  )
  const read = async (digest: string, offset: number) => {
    const parts: Buffer[] = []
    const { stream } = await source.openBlob({ digest, size: 0, mediaType: '' }, offset)
    for await (const part of stream) parts.push(part as Buffer)
    return Buffer.concat(parts)
  }
  const configuration = await read(parsed.manifest.config.digest, 0)
  assert.deepEqual(parseConfiguration(documentOf(configuration)).diffIds, layers.map(digestOf))
  assert.deepEqual(await read(digestOf(layers[1] ?? Buffer.alloc(0)), 7), layers[1]?.subarray(7))
  await assert.rejects(read(digestOf(Buffer.from('none')), 0), hasCode('image-invalid'))
})

it('of several images the named one is taken, with or without its tag', async () => {
  const two = { ...one, RepoTags: ['two:latest', 'two:2'], Layers: null }
  const files = withManifest([one, two])
  assert.deepEqual((await openDockerArchive(files, 'one:1')).names, ['one:1'])
  assert.deepEqual((await openDockerArchive(files, 'two')).names, ['two:latest', 'two:2'])
  await assert.rejects(
    openDockerArchive(files, undefined),
    hasCode('image-not-found', /holds 2 images: one:1, two:latest, two:2/),
  )
  await assert.rejects(openDockerArchive(files, 'one'), hasCode('image-not-found', /no image "one"/))
})

it('an image without a name is taken when it is the only one', async () => {
  assert.deepEqual((await openDockerArchive(withManifest([{ ...one, RepoTags: null }]), undefined)).names, [])
  await assert.rejects(
    openDockerArchive(withManifest([{ ...one, RepoTags: null }]), 'a'),
    hasCode('image-not-found', /none has a name/),
  )
})

it('an archive that lies is refused', async () => {
  for (const [value, message] of [
    [[], /manifest\.json in .* is not what it should be/],
    [{}, /is not what it should be/],
    [[{ Config: 5 }], /is not what it should be/],
    [[{ ...one, Config: 'none.json' }], /holds no none\.json/],
    [[{ ...one, Layers: ['none.tar'] }], /holds no "none\.tar"/],
    [[{ ...one, Layers: ['../../etc/passwd'] }], /holds no "\.\.\/\.\.\/etc\/passwd"/],
  ] as const) {
    await assert.rejects(openDockerArchive(withManifest(value), undefined), hasCode('image-invalid', message))
  }
  assert.equal(await isDockerArchive(memoryFiles(new Map())), false)
})

it('layers that a manifest names often are read once', async () => {
  let opened = 0
  const files = memoryFiles(
    new Map([...archive(), ['manifest.json', json([{ ...one, Layers: Array(500).fill('0/layer.tar') }])]]),
  )
  const counting = {
    ...files,
    open(path: string, offset: number) {
      if (path === '0/layer.tar') opened++
      return files.open(path, offset)
    },
  }
  const parsed = parseDocument(await (await openDockerArchive(counting, undefined)).root())
  assert.ok(parsed.kind === 'manifest' && parsed.manifest.layers.length === 500)
  assert.equal(opened, 1)
})

it('is cancelled while it reads layers', async () => {
  const signal = AbortSignal.abort(new Error('enough'))
  await assert.rejects(openDockerArchive(memoryFiles(archive()), undefined, signal), /enough/)
})
