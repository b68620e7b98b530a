import assert from 'node:assert/strict'
import { mkdir, readdir, utimes, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it, type TestContext } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import type { ImageRecord } from './image-record.js'
import { diskKey, ImageStore } from './image-store.js'

const digest = (digit: string) => `sha256:${digit.repeat(64)}`
const record: ImageRecord = {
  version: 1,
  id: digest('1'),
  manifest: { mediaType: 'x', digest: digest('2'), size: 1 },
  configuration: { mediaType: 'x', digest: digest('1'), size: 1 },
  platform: 'linux/amd64',
  config: { env: [], user: '', workingDir: '/', entrypoint: [], cmd: [], stopSignal: '', labels: {}, exposedPorts: [] },
  layers: [],
  diffIds: [],
  disk: diskKey([]),
  pulledAt: '2026-01-01T00:00:00.000Z',
}

async function openStore(t: TestContext): Promise<ImageStore> {
  const store = new ImageStore(await temporaryFolder(t))
  await store.open()
  return store
}

it('records and references come back as they were written, and are gone when removed', async (t) => {
  const store = await openStore(t)
  assert.equal(await store.readImage(record.id), undefined)
  await store.writeImage(record)
  assert.deepEqual(await store.images(), [record])
  const long = `registry.example/${'a/../'.repeat(200)}:tag`
  const reference = { version: 1, reference: long, image: record.id, root: digest('3'), origin: 'registry' } as const
  await store.writeReference(reference)
  assert.deepEqual(await store.readReference(long), reference)
  assert.deepEqual(await store.references(), [reference])
  await store.removeReference(long)
  await store.removeImage(record.id)
  await store.removeImage(record.id)
  assert.deepEqual([await store.images(), await store.references()], [[], []])
})

it('a damaged record names its file, and what to do', async (t) => {
  const store = await openStore(t)
  await writeFile(join(store.root, 'records', `${'1'.repeat(64)}.json`), '{"version":2}')
  await assert.rejects(store.readImage(digest('1')), hasCode('artifact-damaged', /records\/1+\.json is damaged/))
  await assert.rejects(store.readImage(digest('1')), { hint: /bandsox image pull/ })
})

it('a damaged record keeps nobody from the others', async (t) => {
  const store = await openStore(t)
  await store.writeImage(record)
  const reference = {
    version: 1,
    reference: 'mine:1',
    image: record.id,
    root: digest('3'),
    origin: 'registry',
  } as const
  await store.writeReference(reference)
  assert.deepEqual(await store.damaged(), [])
  const [newer, broken] = [join(store.root, 'records', '5.json'), join(store.root, 'references', '6.json')]
  await writeFile(newer, '{"version":2}')
  await writeFile(broken, '')
  assert.deepEqual([await store.images(), await store.references()], [[record], [reference]])
  const damaged = await store.damaged()
  assert.deepEqual(
    damaged.map(({ file }) => file),
    [newer, broken],
  )
  for (const { file, error } of damaged) assert.ok(error.code === 'artifact-damaged' && error.message.includes(file))
  assert.deepEqual(
    (await store.imageRecords()).damaged.map(({ file }) => file),
    [newer],
  )
})

it('the last use of an image is the time of its record', async (t) => {
  const store = await openStore(t)
  await store.writeImage(record)
  await utimes(join(store.root, 'records', `${'1'.repeat(64)}.json`), 5, 5)
  assert.equal((await store.lastUsedAt(record.id)).getTime(), 5_000)
  store.markUsed(record.id)
  assert.ok(Date.now() - (await store.lastUsedAt(record.id)).getTime() < 10_000)
})

it('layers in another order, or other layers, have another disk', () => {
  const keys = [[], ['a'], ['a', 'b'], ['b', 'a'], ['ab']].map(diskKey)
  assert.equal(new Set(keys).size, keys.length)
  assert.equal(diskKey(['a']), diskKey(['a']))
})

it('a disk appears whole or not at all', async (t) => {
  const store = await openStore(t)
  const key = diskKey(['a'])
  await assert.rejects(
    store.makeDisk(key, async (path) => writeFile(path, 'half').then(() => Promise.reject(new Error('no')))),
    /no/,
  )
  assert.equal(await store.findDisk(key), undefined)
  assert.deepEqual(await readdir(join(store.root, 'disks')), [])
  await store.makeDisk(key, (path) => writeFile(path, 'disk'))
  assert.equal((await store.findDisk(key))?.sizeBytes, 4)
  assert.deepEqual(await store.disks(), [key])
})

it('a disk that was written to is none any more, and is made anew', async (t) => {
  const store = await openStore(t)
  const key = diskKey(['a'])
  await store.makeDisk(key, (path) => writeFile(path, 'disk'))
  const { path = '' } = (await store.findDisk(key)) ?? {}
  await utimes(path, 9, 9)
  assert.equal(await store.findDisk(key), undefined)
  await store.makeDisk(key, (output) => writeFile(output, 'another'))
  assert.equal((await store.findDisk(key))?.sizeBytes, 7)
})

it('a disk is removed with what a killed process left of others', async (t) => {
  const store = await openStore(t)
  const key = diskKey(['a'])
  await store.makeDisk(key, (path) => writeFile(path, 'disk'))
  const disks = join(store.root, 'disks')
  await mkdir(join(disks, '.removed-x'))
  await mkdir(join(disks, '.making-1-1-abcdef'))
  await writeFile(join(store.root, 'references', '.making-1-1-abcdef'), '')
  assert.equal(await store.removeDisk(key), 4)
  assert.equal(await store.removeDisk(key), 0)
  await store.removeUnfinishedDisks()
  assert.deepEqual(await readdir(disks), [])
  assert.deepEqual(await readdir(join(store.root, 'references')), [])
})
