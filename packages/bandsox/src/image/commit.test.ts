import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { buffer } from 'node:stream/consumers'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { type Commit, commitSource, type ImageChanges } from './commit.js'
import type { ImageRecord } from './image-record.js'
import { parseConfiguration, parseDocument } from './manifest.js'
import type { Descriptor } from './source/source.js'
import { digestOf } from './testing/image-corpus.js'
import { json, memoryImage } from './testing/memory-image.js'

const CREATED = '2026-05-01T00:00:00.000Z'
const DIFF_ID = `sha256:${'d'.repeat(64)}`
const packed = Buffer.from('a layer')
const layer = {
  file: '/nonexistent',
  descriptor: {
    mediaType: 'application/vnd.oci.image.layer.v1.tar+gzip',
    digest: digestOf(packed),
    size: packed.length,
  },
  diffId: DIFF_ID,
}
const nothing: ImageChanges = {
  ...{ message: undefined, author: undefined, env: {}, cmd: undefined, entrypoint: undefined },
  ...{ user: undefined, workingDir: undefined },
}

/** @param config Of the other image, beyond what it must have. */
function commitOf(config: Record<string, unknown>, over: { changes?: Partial<ImageChanges>; types?: string[] } = {}) {
  const lower = Buffer.from('another layer')
  const { configuration } = memoryImage([lower], { config })
  const types = over.types ?? ['application/vnd.oci.image.layer.v1.tar']
  const base: ImageRecord = {
    ...{ version: 1, id: digestOf(configuration), platform: 'linux/amd64', disk: '0'.repeat(64), pulledAt: CREATED },
    manifest: { mediaType: 'application/vnd.oci.image.manifest.v1+json', digest: DIFF_ID, size: 1 },
    configuration: { mediaType: '', digest: digestOf(configuration), size: configuration.length },
    config: parseConfiguration({ bytes: configuration, mediaType: '', digest: '' }).config,
    layers: types.map((mediaType) => ({ mediaType, digest: digestOf(lower), size: lower.length })),
    diffIds: [digestOf(lower)],
  }
  const commit: Commit = { base, configuration, layer, changes: { ...nothing, ...over.changes }, createdAt: CREATED }
  return { commit, lower }
}

/** The new image's documents, as a reader of the source finds them. */
async function committed(commit: Commit) {
  const source = commitSource(commit)
  const document = await source.root()
  const parsed = parseDocument(document)
  assert.ok(parsed.kind === 'manifest')
  assert.equal(digestOf(document.bytes), document.digest)
  const { stream } = await source.openBlob(parsed.manifest.config, 0)
  const bytes = await buffer(stream)
  assert.equal(digestOf(bytes), parsed.manifest.config.digest)
  const configuration = JSON.parse(bytes.toString('utf8')) as Record<string, unknown>
  return { source, layers: parsed.manifest.layers, configuration }
}

describe('an image of another one and a layer', () => {
  it('has the layer on top, its digest in its configuration, and the rest as it was', async () => {
    const { commit, lower } = commitOf({ 'org.example': 1, config: { Env: ['A=b'], Volumes: { '/data': {} } } })
    const { layers, configuration } = await committed(commit)
    assert.deepEqual(
      layers.map(({ digest }) => digest),
      [digestOf(lower), layer.descriptor.digest],
    )
    assert.deepEqual(configuration['rootfs'], { type: 'layers', diff_ids: [digestOf(lower), DIFF_ID] })
    assert.deepEqual(configuration['config'], { Env: ['A=b'], Volumes: { '/data': {} } })
    assert.equal(configuration['org.example'], 1)
    assert.equal(configuration['created'], CREATED)
  })

  it('says what it was told to say', async () => {
    const { commit } = commitOf(
      { config: { Env: ['PATH=/bin', 'A=b'], Cmd: ['old'], User: 'root' } },
      { changes: { env: { A: 'c=d', B: '' }, cmd: ['new'], entrypoint: [], user: 'app', workingDir: '/app' } },
    )
    const { configuration } = await committed(commit)
    assert.deepEqual(configuration['config'], {
      ...{ Env: ['PATH=/bin', 'A=c=d', 'B='], Cmd: ['new'], User: 'app', Entrypoint: [], WorkingDir: '/app' },
    })
  })

  it('goes on with a history, and makes one up where it is missing or has not an entry for each layer', async () => {
    const changes = { author: 'Jo', message: 'why' }
    const entry = { created: CREATED, created_by: 'bandsox image commit', author: 'Jo', comment: 'why' }
    const good = [{ created_by: 'ADD file' }, { created_by: 'CMD sh', empty_layer: true }]
    for (const [history, before] of [
      [good, good],
      [undefined, [{ created_by: 'unknown' }]],
      [null, [{ created_by: 'unknown' }]],
      [[], [{ created_by: 'unknown' }]],
      [[...good, ...good], [{ created_by: 'unknown' }]],
      ['odd', [{ created_by: 'unknown' }]],
    ]) {
      const { configuration } = await committed(commitOf({ history }, { changes }).commit)
      assert.deepEqual(configuration['history'], [...(before as unknown[]), entry])
      assert.equal(configuration['author'], 'Jo')
    }
  })

  it('drops what Docker notes of the container that the other one was built in', async () => {
    const { configuration } = await committed(commitOf({ container: 'c', container_config: {}, parent: 'p' }).commit)
    for (const name of ['container', 'container_config', 'parent']) assert.ok(!(name in configuration), name)
  })

  it("names layers of Docker's kinds by OCI's words for them", async () => {
    const docker = 'application/vnd.docker.image.rootfs.diff.tar.gzip'
    const { layers } = await committed(commitOf({}, { types: [docker, 'application/x.other'] }).commit)
    assert.deepEqual(
      layers.map(({ mediaType }) => mediaType),
      ['application/vnd.oci.image.layer.v1.tar+gzip', 'application/x.other', layer.descriptor.mediaType],
    )
  })

  it('gives its own layer from any offset, and no other', async (t) => {
    const file = path.join(await temporaryFolder(t), 'layer')
    await writeFile(file, packed)
    const { commit, lower } = commitOf({})
    const source = commitSource({ ...commit, layer: { ...layer, file } })
    const { stream, startsAt } = await source.openBlob(layer.descriptor, 2)
    assert.equal(startsAt, 2)
    assert.equal((await buffer(stream)).toString(), 'layer')
    const other: Descriptor = { mediaType: '', digest: digestOf(lower), size: lower.length }
    await assert.rejects(source.openBlob(other, 0), hasCode('artifact-damaged'))
  })

  it('is refused over a configuration that is none', () => {
    const { commit } = commitOf({})
    for (const configuration of [Buffer.from('{'), json({ os: 'linux' })])
      assert.throws(() => commitSource({ ...commit, configuration }), hasCode('image-invalid'))
  })
})
