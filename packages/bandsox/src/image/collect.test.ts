import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it, type TestContext } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { removeGarbage, removeImage, removeLayers } from './collect.js'
import type { ImageRecord } from './image-record.js'
import { diskKey, ImageStore } from './image-store.js'

/** A store with an image, its disk, its blobs and its reference, and a disk and a blob that nobody refers to. */
async function storeWithGarbage(t: TestContext) {
  const store = new ImageStore(await temporaryFolder(t))
  await store.open()
  const keep = async (content: string) => {
    const bytes = Buffer.from(content)
    const digest = `sha256:${createHash('sha256').update(bytes).digest('hex')}`
    await store.blobs.writeDocument(digest, bytes)
    return { mediaType: 'x', digest, size: bytes.length }
  }
  const configuration = await keep('configuration')
  const layer = await keep('layer')
  const image: ImageRecord = {
    version: 1,
    id: configuration.digest,
    manifest: await keep('manifest'),
    configuration,
    platform: 'linux/amd64',
    config: {
      env: [],
      user: '',
      workingDir: '/',
      entrypoint: [],
      cmd: [],
      stopSignal: '',
      labels: {},
      exposedPorts: [],
    },
    layers: [layer],
    diffIds: [layer.digest],
    disk: diskKey([layer.digest]),
    pulledAt: '2026-01-01T00:00:00.000Z',
  }
  await keep('garbage')
  for (const key of [image.disk, diskKey(['garbage'])]) await store.makeDisk(key, (path) => writeFile(path, 'disk'))
  await store.writeImage(image)
  await store.writeReference({
    version: 1,
    reference: 'mine:1',
    image: image.id,
    root: image.manifest.digest,
    origin: 'registry',
  })
  const unreadable = join(store.root, 'records', `${'9'.repeat(64)}.json`)
  /** Names of all that is there. */
  const all = async () => (await readdir(store.root, { recursive: true })).sort()
  return { store, image, unreadable, all }
}

it('what no image refers to is garbage', async (t) => {
  const { store, image } = await storeWithGarbage(t)
  assert.equal(await removeGarbage(store), 'garbage'.length + 'disk'.length)
  assert.deepEqual([await store.disks(), (await store.blobs.digests()).length], [[image.disk], 3])
})

it('nothing is garbage while the record of an image cannot be read, but what is unfinished', async (t) => {
  const { store, unreadable, all } = await storeWithGarbage(t)
  await writeFile(unreadable, '{"version":2}')
  const before = await all()
  await writeFile(join(store.root, 'partial', '0'.repeat(64)), 'half')
  assert.equal(await removeGarbage(store), 'half'.length)
  assert.deepEqual(await all(), before)
  await rm(unreadable)
  assert.ok((await removeGarbage(store)) > 0)
})

it('an unreadable reference keeps no garbage, as it refers to images alone', async (t) => {
  const { store } = await storeWithGarbage(t)
  await writeFile(join(store.root, 'references', `${'9'.repeat(64)}.json`), '')
  assert.ok((await removeGarbage(store)) > 0)
})

it('an image is removed with all that it alone has', async (t) => {
  const { store, image } = await storeWithGarbage(t)
  await removeGarbage(store)
  assert.equal(await removeImage(store, image), 'disk configuration layer manifest'.replaceAll(' ', '').length)
  assert.deepEqual([await store.disks(), await store.blobs.digests(), await store.references()], [[], [], []])
})

it('no image is removed while it is not known what it shares', async (t) => {
  const { store, image, unreadable, all } = await storeWithGarbage(t)
  await writeFile(unreadable, '{"version":2}')
  const before = await all()
  await assert.rejects(
    removeImage(store, image),
    hasCode('artifact-damaged', /cannot remove sha256:.*records\/9+\.json/),
  )
  assert.deepEqual(await all(), before)
})

it('layers go that a registry has, and not those of an image that none has, as one that was committed over them', async (t) => {
  const { store, image } = await storeWithGarbage(t)
  const digests = async () => (await store.blobs.digests()).length
  const before = await digests()
  const committed = { ...image, id: `sha256:${'c'.repeat(64)}`, layers: [...image.layers, ...image.layers] }
  await store.writeImage(committed)
  const named = { version: 1, reference: 'mine:2', image: committed.id, root: committed.manifest.digest } as const
  for (const keep of [async () => undefined, () => store.writeReference({ ...named, origin: 'local' })]) {
    await keep()
    assert.equal(await removeLayers(store, image), 0)
    assert.equal(await digests(), before)
  }
  await store.writeReference({ ...named, origin: 'registry' })
  assert.equal(await removeLayers(store, image), 'layer'.length)
  assert.equal(await digests(), before - 1)
})
