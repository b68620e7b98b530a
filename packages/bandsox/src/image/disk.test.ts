import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdtemp, open, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { copyDisk, copyEmptyDisk, emptyDisk, findPieces } from './disk.js'

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

test('a copy of an empty disk is the same, and takes almost nothing', async () => {
  for (const sizeMib of [64, 4096]) {
    const { path } = await emptyDisk({ cacheDirectory, sizeMib })
    const copy = join(cacheDirectory, 'copy')
    await copyEmptyDisk(path, copy)
    const { size, mode } = await stat(copy)
    assert.deepEqual([size, mode & 0o777], [sizeMib * MIB, 0o600])
    assert.ok((await allocatedBytes(copy)) < 1 * MIB)
    execFileSync('/usr/sbin/e2fsck', ['-f', '-n', copy], { stdio: 'pipe' })
    if (sizeMib === 64) execFileSync('cmp', [path, copy], { stdio: 'pipe' })
    await rm(copy)
  }
})

test('what is remembered of another disk is not used, nor what is damaged', async () => {
  const { path } = await emptyDisk({ cacheDirectory, sizeMib: 64 })
  const file = `${path}.pieces.json`
  const right = JSON.parse(await readFile(file, 'utf8'))
  assert.ok(right.pieces.length > 1)
  const few = [{ offset: 0, length: 4096 }]
  for (const wrong of [{ ...right, mtimeMs: 1 }, { ...right, pieces: few }, { version: 2 }, 'no JSON']) {
    await writeFile(file, typeof wrong === 'string' ? wrong : JSON.stringify(wrong))
    const copy = join(cacheDirectory, 'copy')
    await copyEmptyDisk(path, copy)
    execFileSync('cmp', [path, copy], { stdio: 'pipe' })
    // Where it is zeros, a piece more or less may be told of another time.
    assert.equal(JSON.parse(await readFile(file, 'utf8')).mtimeMs, right.mtimeMs)
    await rm(copy)
  }
})

test('any disk is copied whole, whether its pieces are known, many, or changed since', async () => {
  const { path } = await emptyDisk({ cacheDirectory, sizeMib: 64 })
  const [disk, copy] = [join(cacheDirectory, 'disk'), join(cacheDirectory, 'copy')]
  await copyDisk(path, disk)
  const isCopied = async () => {
    await copyDisk(disk, copy)
    execFileSync('cmp', [disk, copy], { stdio: 'pipe' })
    assert.equal((await stat(copy)).mode & 0o777, 0o600)
    await rm(copy)
  }
  await findPieces(disk)
  await isCopied()
  const handle = await open(disk, 'r+')
  await handle.write('later', 40 * MIB)
  await isCopied()
  await handle.write(randomBytes(2 * MIB), 0, 2 * MIB, 48 * MIB)
  await handle.close()
  await findPieces(disk)
  await isCopied()
  for (const name of [disk, `${disk}.pieces.json`]) await rm(name)
})

test('a size out of bounds is refused with the bounds', async () => {
  for (const sizeMib of [0, 31, 1_048_577, 64.5, Number.NaN]) {
    await assert.rejects(emptyDisk({ cacheDirectory, sizeMib }), {
      code: 'bad-request',
      message: `cannot make a disk of ${sizeMib} MiB: it is a whole number from 32 to 1048576`,
    })
  }
})
