import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { DEFAULT_LIMITS } from '../layer/limits.js'
import { parseConfiguration, parseDocument } from '../manifest.js'
import { digestOf } from '../testing/image-corpus.js'
import { dockerFiles, documentOf, json, memoryFiles, memoryImage } from '../testing/memory-image.js'
import { file, hardlink, symlink, tar } from '../testing/tar-builder.js'
import { isDockerArchive, openDockerArchive } from './docker-archive.js'
import { openTarArchive } from './tar-archive.js'

const layers = [tar(file('a', '1')), tar(file('b', '2'))]
const image = memoryImage(layers)
const options = { limits: { ...DEFAULT_LIMITS, maxLayers: 500 } }
const archive = (names: string[] = ['app:latest']) => dockerFiles(image, layers, names)

const withManifest = (value: unknown) => memoryFiles(new Map([...archive(), ['manifest.json', json(value)]]))
const one = { Config: 'config.json', RepoTags: ['one:1'], Layers: ['0/layer.tar'] }

it('an archive becomes an image with digests', async () => {
  const files = memoryFiles(archive())
  assert.equal(await isDockerArchive(files), true)
  const source = await openDockerArchive(files, undefined, options)
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
  assert.deepEqual((await openDockerArchive(files, 'one:1', options)).names, ['one:1'])
  assert.deepEqual((await openDockerArchive(files, 'two', options)).names, ['two:latest', 'two:2'])
  await assert.rejects(
    openDockerArchive(files, undefined, options),
    hasCode('image-not-found', /holds 2 images: one:1, two:latest, two:2/),
  )
  await assert.rejects(openDockerArchive(files, 'one', options), hasCode('image-not-found', /no image "one"/))
})

it('an image without a name is taken when it is the only one', async () => {
  assert.deepEqual((await openDockerArchive(withManifest([{ ...one, RepoTags: null }]), undefined, options)).names, [])
  await assert.rejects(
    openDockerArchive(withManifest([{ ...one, RepoTags: null }]), 'a', options),
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
    await assert.rejects(openDockerArchive(withManifest(value), undefined, options), hasCode('image-invalid', message))
  }
  assert.equal(await isDockerArchive(memoryFiles(new Map())), false)
})

it('a layer that a manifest names often, by itself and by links, is read once', async (t) => {
  const links = Array.from({ length: 498 }, (_, index) => `link-${index}`)
  const paths = ['0/layer.tar', '0/layer.tar', ...links]
  const path = join(await temporaryFolder(t), 'image.tar')
  const manifest = json([{ Config: 'config.json', RepoTags: [], Layers: paths }])
  await writeFile(
    path,
    tar(
      file('manifest.json', manifest),
      file('config.json', image.configuration),
      file('0/layer.tar', layers[0] ?? ''),
      ...links.map((link, index) => (index % 2 === 0 ? symlink(link, '0/layer.tar') : hardlink(link, '0/layer.tar'))),
    ),
  )
  const workFolder = await temporaryFolder(t)
  const files = await openTarArchive(path, () => false, { ...options, workFolder })
  assert.ok(files)
  let opened = 0
  const counting = {
    ...files,
    open(wanted: string, offset: number) {
      if (!wanted.endsWith('.json')) opened++
      return files.open(wanted, offset)
    },
  }
  const told: string[] = []
  const source = await openDockerArchive(counting, undefined, { ...options, onActivity: (what) => told.push(what) })
  t.after(() => source.close())
  const parsed = parseDocument(await source.root())
  assert.ok(parsed.kind === 'manifest' && parsed.manifest.layers.length === 500)
  assert.equal(opened, 1)
  assert.deepEqual(told, [`hashing the layers of ${path}`])
})

it('of too many layers none is read', async () => {
  const files = withManifest([{ ...one, Layers: Array(501).fill('none.tar') }])
  await assert.rejects(
    openDockerArchive(files, undefined, options),
    hasCode('image-too-large', /has 501 layers, over 500 \(images\.limits\.maxLayers\)/),
  )
})

it('names that would move the cursor of a terminal, and names without end, are refused', async () => {
  for (const value of [
    { ...one, RepoTags: ['a\u001b[2J'] },
    { ...one, RepoTags: ['a\u202eb'] },
    { ...one, RepoTags: ['x'.repeat(1025)] },
    { ...one, RepoTags: Array(1001).fill('a:1') },
    { ...one, Config: 'a\n' },
    { ...one, Layers: ['x'.repeat(4097)] },
  ]) {
    const files = withManifest([value])
    await assert.rejects(
      openDockerArchive(files, undefined, options),
      hasCode('image-invalid', /not what it should be/),
    )
    assert.equal(await isDockerArchive(files), false)
  }
  const many = withManifest(Array.from({ length: 100 }, (_, index) => ({ ...one, RepoTags: [`n:${index}`] })))
  await assert.rejects(
    openDockerArchive(many, undefined, options),
    hasCode('image-not-found', /holds 100 images: n:0, .*, n:19 and 80 more$/),
  )
})

it('is cancelled while it reads layers', async () => {
  const signal = AbortSignal.abort(new Error('enough'))
  await assert.rejects(openDockerArchive(memoryFiles(archive()), undefined, { ...options, signal }), /enough/)
})
