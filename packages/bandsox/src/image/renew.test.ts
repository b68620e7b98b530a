import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { readFile, stat, writeFile } from 'node:fs/promises'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { removeGarbage } from './collect.js'
import type { ImageRecord } from './image-record.js'
import { ImageStore } from './image-store.js'
import { DEFAULT_LIMITS } from './layer/limits.js'
import { pullImage } from './pull.js'
import { hasEarlierDisk, renewDisk } from './renew.js'
import { MemorySource, memoryImage } from './testing/memory-image.js'
import { file, tar } from './testing/tar-builder.js'

const skip =
  spawnSync('sqfstar', ['-version']).error === undefined
    ? false
    : 'sqfstar is not installed: apt-get install squashfs-tools'
const EARLIER = '1'.repeat(64)
const limits = DEFAULT_LIMITS

/** As an earlier version has left it. */
async function earlierImage(t: TestScope): Promise<{ store: ImageStore; record: ImageRecord }> {
  const store = new ImageStore(await temporaryFolder(t))
  await store.open()
  const { image } = await pullImage({
    ...{ store, source: new MemorySource(memoryImage([tar(file('a', 'of an image'))])), limits },
    ...{ reference: 'example.org/app:1', origin: 'local', platform: { os: 'linux', architecture: 'amd64' } },
  })
  const record = { ...image, disk: EARLIER }
  await store.makeDisk(EARLIER, (output) => writeFile(output, 'an earlier disk'))
  await store.removeDisk(image.disk)
  await store.writeImage(record)
  return { store, record }
}

describe('a disk of an earlier format', { skip }, () => {
  it('is made anew from the layers, and is garbage then; the image keeps its names', async (t) => {
    const { store, record } = await earlierImage(t)
    assert.ok(hasEarlierDisk(record))
    const renewed = await renewDisk(record, { store, limits })
    assert.ok(!hasEarlierDisk(renewed))
    assert.deepEqual(await store.readImage(record.id), renewed)
    assert.deepEqual({ ...renewed, disk: '', pulledAt: '' }, { ...record, disk: '', pulledAt: '' })
    const { path = '' } = (await store.findDisk(renewed.disk)) ?? {}
    assert.equal(execFileSync('unsquashfs', ['-cat', path, 'rootfs/a'], { encoding: 'utf8' }), 'of an image')
    assert.match(execFileSync('unsquashfs', ['-s', path], { encoding: 'utf8' }), /exportable via NFS/)
    assert.deepEqual(
      (await store.references()).map(({ reference }) => reference),
      ['example.org/app:1'],
    )
    assert.ok(await store.findDisk(EARLIER))
    await removeGarbage(store)
    assert.deepEqual(await store.disks(), [renewed.disk])
    assert.equal(await renewDisk(renewed, { store, limits }), renewed)
  })

  it('stays where the layers are gone', async (t) => {
    const { store, record } = await earlierImage(t)
    for (const { digest } of record.layers) await store.blobs.remove(digest)
    assert.equal(await renewDisk(record, { store, limits }), record)
    assert.ok(await store.findDisk(EARLIER))
  })

  it('stays where a layer is damaged, which is told', async (t) => {
    const { store, record } = await earlierImage(t)
    const layer = store.blobs.pathOf(record.layers[0]?.digest ?? '')
    await writeFile(layer, Buffer.alloc((await stat(layer)).size))
    await assert.rejects(renewDisk(record, { store, limits }), hasCode('digest-mismatch'))
    assert.deepEqual(await store.readImage(record.id), record)
    assert.equal((await readFile((await store.findDisk(EARLIER))?.path ?? '')).toString(), 'an earlier disk')
  })
})
