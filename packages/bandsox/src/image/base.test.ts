import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { prepareBaseImage } from './base.js'
import { verifyImage } from './image.js'

const skip =
  spawnSync('sqfstar', ['-version']).error === undefined ? false : 'sqfstar (squashfs-tools 4.5) is not installed'

let folder: string
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bandsox-base-'))
})
after(() => rm(folder, { recursive: true }))

test('the base image holds busybox with its applets and a user', { skip }, async () => {
  const { image, made } = await prepareBaseImage({ images: join(folder, 'a') })
  assert.equal(made, true)
  assert.equal(image.reference, 'bandsox/base')
  await verifyImage(image)
  const listing = execFileSync('unsquashfs', ['-lln', image.rootfs.path], { encoding: 'utf8' })
  assert.match(listing, /^drwxr-xr-x .* squashfs-root$/m)
  assert.match(listing, /^-rwxr-xr-x 0\/0 .* squashfs-root\/usr\/bin\/busybox$/m)
  assert.match(listing, /^lrwxrwxrwx 0\/0 .* squashfs-root\/usr\/bin\/sh -> busybox$/m)
  assert.match(listing, /^drwxr-xr-x 1000\/1000 .* squashfs-root\/home\/sandbox$/m)
})

test('it is made once, and the next time with the same bytes', { skip }, async () => {
  const { image, made } = await prepareBaseImage({ images: join(folder, 'a') })
  assert.equal(made, false)
  const other = await prepareBaseImage({ images: join(folder, 'b') })
  assert.equal(other.image.digest, image.digest)
})

test('a damaged image is made anew, and nothing is left beside it', { skip }, async () => {
  const { image } = await prepareBaseImage({ images: join(folder, 'a') })
  await rm(image.rootfs.path)
  const repaired = await prepareBaseImage({ images: join(folder, 'a') })
  assert.equal(repaired.made, true)
  await verifyImage(repaired.image)
  assert.deepEqual(await readdir(join(folder, 'a')), ['bandsox-base'])
})
