import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtemp, readdir, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { copySparse, emptyDisk } from './disk.js'

const MIB = 1024 * 1024

let cacheDirectory: string
before(async () => {
  cacheDirectory = await mkdtemp(join(tmpdir(), 'bandsox-disk-'))
})
after(() => rm(cacheDirectory, { recursive: true }))

const allocatedBytes = async (path: string) => (await stat(path)).blocks * 512

test('an empty disk is a whole ext4 that takes little space', async () => {
  const { path, made } = await emptyDisk({ cacheDirectory, sizeMib: 4096 })
  assert.equal(made, true)
  assert.equal((await stat(path)).size, 4096 * MIB)
  assert.ok((await allocatedBytes(path)) < 16 * MIB)
  // Exits with another status than 0 when it finds anything to repair.
  execFileSync('/usr/sbin/e2fsck', ['-f', '-n', path], { stdio: 'pipe' })
})

test('a size is formatted once, also by many at once', async () => {
  const disks = await Promise.all(Array.from({ length: 4 }, () => emptyDisk({ cacheDirectory, sizeMib: 64 })))
  const [first] = disks
  assert.deepEqual(await emptyDisk({ cacheDirectory, sizeMib: 64 }), { path: first?.path, made: false })
  assert.deepEqual((await readdir(cacheDirectory)).sort(), ['empty-4096.ext4', 'empty-64.ext4'])
})

test('a copy of an empty disk takes almost nothing', async () => {
  const { path } = await emptyDisk({ cacheDirectory, sizeMib: 4096 })
  const copy = join(cacheDirectory, 'copy')
  await copySparse(path, copy)
  assert.equal((await stat(copy)).size, 4096 * MIB)
  assert.ok((await allocatedBytes(copy)) < 1 * MIB)
  execFileSync('/usr/sbin/e2fsck', ['-f', '-n', copy], { stdio: 'pipe' })
})

test('a size out of bounds is refused with the bounds', async () => {
  for (const sizeMib of [0, 31, 1_048_577, 64.5, Number.NaN]) {
    await assert.rejects(emptyDisk({ cacheDirectory, sizeMib }), {
      code: 'bad-request',
      message: `cannot make a disk of ${sizeMib} MiB: it is a whole number from 32 to 1048576`,
    })
  }
})
