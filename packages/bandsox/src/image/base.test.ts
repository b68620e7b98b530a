import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { prepareBaseImage } from './base.js'
import { ImageStore } from './image-store.js'

const skip =
  spawnSync('sqfstar', ['-version']).error === undefined ? false : 'sqfstar (squashfs-tools 4.5) is not installed'
const platform = { os: 'linux', architecture: 'amd64' }

let folder: string
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bandsox-base-'))
})
after(() => rm(folder, { recursive: true }))

async function storeIn(name: string): Promise<ImageStore> {
  const store = new ImageStore(join(folder, name))
  await store.open()
  return store
}

test('the base image holds busybox with its applets and a user', { skip }, async () => {
  const store = await storeIn('a')
  const { image, made } = await prepareBaseImage({ store, platform })
  assert.equal(made, true)
  assert.equal((await store.readReference('bandsox/base'))?.image, image.id)
  const disk = await store.findDisk(image.disk)
  const listing = execFileSync('unsquashfs', ['-lln', disk?.path ?? ''], { encoding: 'utf8' })
  assert.match(listing, /^drwxr-xr-x 0\/0 .* squashfs-root\/rootfs$/m)
  assert.match(listing, /^-rwxr-xr-x 0\/0 .* squashfs-root\/rootfs\/usr\/bin\/busybox$/m)
  assert.match(listing, /^lrwxrwxrwx 0\/0 .* squashfs-root\/rootfs\/usr\/bin\/sh -> busybox$/m)
  assert.match(listing, /^drwxr-xr-x 1000\/1000 .* squashfs-root\/rootfs\/home\/sandbox$/m)
})

test('it is made once, and elsewhere it is the same image', { skip }, async () => {
  const { image, made } = await prepareBaseImage({ store: await storeIn('a'), platform })
  assert.equal(made, false)
  const other = await prepareBaseImage({ store: await storeIn('b'), platform })
  assert.equal(other.image.id, image.id)
})

test('a damaged disk is made anew', { skip }, async () => {
  const store = await storeIn('a')
  const { image } = await prepareBaseImage({ store, platform })
  await rm((await store.findDisk(image.disk))?.path ?? '')
  const repaired = await prepareBaseImage({ store, platform })
  assert.equal(repaired.made, true)
  assert.ok((await store.findDisk(image.disk)) !== undefined)
})
