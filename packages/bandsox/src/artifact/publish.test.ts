import assert from 'node:assert/strict'
import { mkdir, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach, beforeEach, test } from 'node:test'
import { publishDirectory, publishFile, publishJson, removeAbandoned } from './publish.js'

let folder: string
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bandsox-publish-'))
})
afterEach(() => rm(folder, { recursive: true }))

const make = (content: string) => async (directory: string) => {
  await writeFile(join(directory, 'file'), content)
  return 'made'
}
const whole = async () => true
const damaged = async () => false

test('a folder appears under the name that its maker returns, for all to read', async () => {
  assert.equal(await publishDirectory(folder, make('one'), whole), join(folder, 'made'))
  assert.equal(await readFile(join(folder, 'made/file'), 'utf8'), 'one')
  assert.equal((await stat(join(folder, 'made'))).mode & 0o777, 0o755)
})

test('a folder whose making fails leaves nothing', async () => {
  const failing = async (directory: string) => {
    await make('half')(directory)
    throw new Error('no more')
  }
  await assert.rejects(publishDirectory(folder, failing, whole), /no more/)
  assert.deepEqual(await readdir(folder), [])
})

test('an intact folder stays, a damaged one is replaced', async () => {
  await publishDirectory(folder, make('one'), whole)
  await publishDirectory(folder, make('two'), whole)
  assert.equal(await readFile(join(folder, 'made/file'), 'utf8'), 'one')
  await publishDirectory(folder, make('three'), damaged)
  assert.equal(await readFile(join(folder, 'made/file'), 'utf8'), 'three')
  assert.deepEqual(await readdir(folder), ['made'])
})

test('of many that make the same folder at once, all end with one whole folder', async () => {
  await Promise.all(Array.from({ length: 16 }, () => publishDirectory(folder, make('same'), whole)))
  assert.deepEqual(await readdir(folder), ['made'])
  assert.equal(await readFile(join(folder, 'made/file'), 'utf8'), 'same')
})

test('a file whose making fails leaves the old one', async () => {
  const path = join(folder, 'file')
  await publishFile(path, (unfinished) => writeFile(unfinished, 'old'))
  const failing = async (unfinished: string) => {
    await writeFile(unfinished, 'half')
    throw new Error('no more')
  }
  await assert.rejects(publishFile(path, failing), /no more/)
  assert.equal(await readFile(path, 'utf8'), 'old')
  assert.deepEqual(await readdir(folder), ['file'])
})

test('a manifest is replaced whole', async () => {
  const path = join(folder, 'manifest.json')
  await publishJson(path, { version: 1 })
  await publishJson(path, { version: 2 })
  assert.deepEqual(JSON.parse(await readFile(path, 'utf8')), { version: 2 })
})

test('what a dead process left unfinished goes, what a living one is making stays', async () => {
  await mkdir(join(folder, '.making-999999999-1-abc/deep'), { recursive: true })
  await mkdir(join(folder, `.making-${process.pid}-1-abc`)) // the number of this process, but not its start time
  await publishDirectory(
    folder,
    async (directory) => {
      await removeAbandoned(folder)
      return make('one')(directory)
    },
    whole,
  )
  assert.deepEqual(await readdir(folder), ['made'])
})
