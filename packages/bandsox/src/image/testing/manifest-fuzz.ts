/** Feeds the readers of manifests and of image files with documents that were right once. */
import assert from 'node:assert/strict'
import type { Random } from '../../testing/random.js'
import { DEFAULT_LIMITS } from '../layer/limits.js'
import { choosePlatform, mediaTypes, parseConfiguration, parseDocument } from '../manifest.js'
import { openDockerArchive } from '../source/docker-archive.js'
import { openLayout } from '../source/layout.js'
import type { Document, ImageSource } from '../source/source.js'
import { type FuzzRun, fuzz, outcomeOf } from './fuzz-run.js'
import { digestOf } from './image-corpus.js'
import { described, dockerFiles, documentOf, json, layoutFiles, memoryFiles, memoryImage } from './memory-image.js'
import { file, tar } from './tar-builder.js'

const codes = ['image-invalid', 'image-not-found', 'platform-not-found', 'layer-invalid', 'digest-mismatch'] as const
const layers = [tar(file('a', '1')), tar(file('b', '2'))]
const image = memoryImage(layers, { config: { created: '2026-01-01T00:00:00Z', variant: 'v1' } })
const amd64 = { os: 'linux', architecture: 'amd64' }
const manifestDescriptor = described(image.manifest, mediaTypes.ociManifest)
const documents: readonly Buffer[] = [
  image.manifest,
  image.configuration,
  json({ schemaVersion: 2, manifests: [{ ...manifestDescriptor, platform: amd64, annotations: { a: 'b' } }] }),
  json({ schemaVersion: 1, name: 'a', fsLayers: [{ blobSum: digestOf(image.manifest) }] }),
  json({
    ...amd64,
    rootfs: { type: 'layers', diff_ids: null },
    config: { Env: null, Entrypoint: ['a'], Labels: { a: 'b' }, ExposedPorts: { '80/tcp': {} }, User: 'root' },
  }),
]

/** @throws When a reader throws what it may not. */
export const fuzzManifests = (run: FuzzRun): Promise<string> =>
  fuzz(run, async (random) => {
    const document = documentOf(mutatedDocument(random.pick(documents), random))
    await outcomeOf(codes, () => readDocument(document))
    await outcomeOf(codes, () => checkConfiguration(document))
    const tag = random.pick(['', 'latest', 'app']) || undefined
    const layout = mutatedFiles(layoutFiles(image, random.pick(['', 'app'])), random)
    await outcomeOf(codes, async () => readAll(await openLayout(memoryFiles(layout), tag)))
    const archive = mutatedFiles(dockerFiles(image, layers, ['app:latest']), random)
    await outcomeOf(codes, async () =>
      readAll(await openDockerArchive(memoryFiles(archive), tag, { limits: DEFAULT_LIMITS })),
    )
  })

function readDocument(document: Document): void {
  const parsed = parseDocument(document)
  if (parsed.kind === 'index') choosePlatform(parsed.index, amd64, 'app')
  const descriptors =
    parsed.kind === 'index' ? parsed.index.manifests : [parsed.manifest.config, ...parsed.manifest.layers]
  for (const { digest, size } of descriptors) {
    assert.match(digest, /^sha256:[0-9a-f]{64}$/)
    assert.ok(Number.isSafeInteger(size) && size >= 0)
  }
}

function checkConfiguration(document: Document): void {
  const { platform, diffIds, config } = parseConfiguration(document)
  assert.equal(typeof platform, 'string')
  for (const id of diffIds) assert.match(id, /^sha256:[0-9a-f]{64}$/)
  for (const each of [...config.env, ...config.cmd, ...config.entrypoint, ...config.exposedPorts])
    assert.equal(typeof each, 'string')
  for (const each of config.env) assert.ok(each.includes('=') && !each.includes('\0'))
}

/** As a pull does, up to the first bytes of each layer. */
async function readAll(source: ImageSource): Promise<void> {
  const root = await source.root()
  const parsed = parseDocument(root)
  const chosen = parsed.kind === 'index' ? await source.manifest(choosePlatform(parsed.index, amd64, 'app')) : root
  const inner = parseDocument(chosen)
  if (inner.kind === 'index') return
  for (const descriptor of [inner.manifest.config, ...inner.manifest.layers]) {
    const { stream, startsAt } = await source.openBlob(descriptor, 0)
    assert.equal(startsAt, 0)
    const parts: Buffer[] = []
    for await (const part of stream) parts.push(part as Buffer)
    if (descriptor === inner.manifest.config) parseConfiguration(documentOf(Buffer.concat(parts)))
  }
}

function mutatedFiles(files: Map<string, Buffer>, random: Random): Map<string, Buffer> {
  const name = random.pick([...files.keys()])
  const before = files.get(name) ?? Buffer.alloc(0)
  const after = name.endsWith('.json') ? mutatedDocument(before, random) : flipped(before, random)
  if (random.below(8) === 0) files.delete(name)
  else files.set(name, after)
  return files
}

function mutatedDocument(document: Buffer, random: Random): Buffer {
  if (random.below(3) === 0) return flipped(document, random)
  const value: unknown = JSON.parse(document.toString('utf8'))
  let changed = value
  for (let left = 1 + random.below(3); left > 0; left--) changed = changedValue(changed, random)
  return Buffer.from(JSON.stringify(changed))
}

function flipped(bytes: Buffer, random: Random): Buffer {
  const copy = Buffer.from(bytes.subarray(0, random.below(4) === 0 ? random.below(bytes.length + 1) : bytes.length))
  for (let left = random.below(6); left > 0 && copy.length > 0; left--)
    copy[random.below(copy.length)] = random.below(256)
  return copy
}

const oddValues: readonly unknown[] = [
  ...[null, true, 0, 1, 2, -1, 1.5, 2 ** 53, 1e300, '', 'a', '../../etc/passwd', 'x'.repeat(300), 'x'.repeat(200_000)],
  ...[
    [],
    {},
    [null],
    [[[]]],
    { toString: 1 },
    `sha256:${'0'.repeat(64)}`,
    `sha256:${'0'.repeat(63)}`,
    `sha512:${'0'.repeat(128)}`,
  ],
  ...[
    JSON.parse('{"__proto__":{"a":"b"}}'),
    { constructor: 'x' },
    Array(20).fill({ digest: 1 }),
    amd64,
    manifestDescriptor,
  ],
]
const oddKeys = [
  'config',
  'manifests',
  'layers',
  'schemaVersion',
  'platform',
  'rootfs',
  '__proto__',
  'constructor',
  'size',
  'digest',
]

/** With one thing in it replaced, removed, doubled or put in. */
function changedValue(value: unknown, random: Random): unknown {
  if (typeof value !== 'object' || value === null || random.below(6) === 0) return random.pick(oddValues)
  if (Array.isArray(value)) {
    const index = random.below(value.length + 1)
    const [inner] = value.slice(index)
    const replaced = random.below(5) === 0 ? [] : [changedValue(inner, random)]
    return [...value.slice(0, index), ...replaced, ...value.slice(random.below(5) === 0 ? index : index + 1)]
  }
  const entries = Object.entries(value)
  const key = entries.length === 0 || random.below(6) === 0 ? random.pick(oddKeys) : random.pick(entries)[0]
  const rest = entries.filter(([name]) => name !== key)
  if (random.below(8) === 0) return Object.fromEntries(rest)
  return Object.fromEntries([...rest, [key, changedValue(entries.find(([name]) => name === key)?.[1], random)]])
}
