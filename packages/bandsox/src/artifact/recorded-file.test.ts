import assert from 'node:assert/strict'
import { chmod, link, mkdtemp, rm, stat, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { checkFile, type RecordedFile, recordedFileSchema, recordFile, verifyFile } from './recorded-file.js'

let folder: string
let recorded: RecordedFile
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bandsox-recorded-'))
  await writeFile(join(folder, 'kernel'), 'content')
  recorded = await recordFile(folder, 'kernel')
})
afterEach(() => rm(folder, { recursive: true }))

const damaged = (message: RegExp) => ({ code: 'artifact-damaged', message })

test('a recorded file is known by size and digest, and nobody may write to it', async () => {
  assert.deepEqual(recorded, {
    file: 'kernel',
    sha256: 'ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73',
    sizeBytes: 7,
  })
  assert.equal((await stat(join(folder, 'kernel'))).mode & 0o777, 0o444)
  await verifyFile(folder, recorded)
})

test('a hard link to it, as in the folder of a VM, changes nothing', async () => {
  await link(join(folder, 'kernel'), join(folder, 'link'))
  await verifyFile(folder, recorded)
})

test('a missing, cut or touched file is found by the quick check', async () => {
  const path = join(folder, 'kernel')
  await utimes(path, new Date(), new Date())
  await assert.rejects(checkFile(folder, recorded), damaged(/kernel was changed after it was made/))
  await chmod(path, 0o644)
  await writeFile(path, 'cut')
  await assert.rejects(checkFile(folder, recorded), damaged(/kernel has 3 bytes instead of 7/))
  await rm(path)
  await assert.rejects(checkFile(folder, recorded), damaged(/kernel is missing/))
})

test('a change behind size and time is found by the digest', async () => {
  const path = join(folder, 'kernel')
  await chmod(path, 0o644)
  await writeFile(path, 'CONTENT')
  await utimes(path, new Date(0), new Date(0))
  await checkFile(folder, recorded)
  await assert.rejects(verifyFile(folder, recorded), damaged(/kernel has the SHA-256 \w+ instead of ed7002b4/))
})

test('a manifest cannot name a file outside its folder', () => {
  for (const file of ['/etc/passwd', '../kernel', 'modules/../../kernel', 'a//b', '']) {
    assert.equal(recordedFileSchema.safeParse({ ...recorded, file }).success, false, file)
  }
  assert.equal(recordedFileSchema.safeParse({ ...recorded, file: 'modules/overlay.ko' }).success, true)
})
