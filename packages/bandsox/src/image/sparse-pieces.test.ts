import assert from 'node:assert/strict'
import { open, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { piecesIn, sparsePieces } from './sparse-pieces.js'

const MIB = 1024 * 1024

test('the pieces of a sparse file are found, and hold all that was written', async (t) => {
  const file = path.join(await temporaryFolder(t), '-a name that begins like an option')
  const handle = await open(file, 'w')
  const places = [0, 3 * MIB + 17, 40 * MIB]
  for (const place of places) await handle.write(Buffer.alloc(5_000, 1), 0, 5_000, place)
  await handle.truncate(64 * MIB)
  await handle.close()
  const pieces = await sparsePieces(file, 64 * MIB)
  assert.ok(pieces !== undefined)
  const holds = (begin: number, end: number) =>
    pieces.some(({ offset, length }) => offset <= begin && offset + length >= end)
  assert.ok(places.every((place) => holds(place, place + 5_000)))
  assert.ok(pieces.reduce((sum, { length }) => sum + length, 0) < 1 * MIB)
})

test('of a file that is not sparse, or not there, none are told', async (t) => {
  const folder = await temporaryFolder(t)
  await writeFile(path.join(folder, 'whole'), 'whole')
  assert.equal(await sparsePieces(path.join(folder, 'whole'), 5), undefined)
  assert.equal(await sparsePieces(path.join(folder, 'missing'), 5), undefined)
})

const extended = (text: string) => `${text.length + 3} ${text}\n`
const archive = (map: string, version = '1') => {
  const records = extended(`GNU.sparse.major=${version}`) + extended('GNU.sparse.minor=0')
  const header = `${'name'.padEnd(124, '\0')}${records.length.toString(8).padStart(11, '0')}\0`.padEnd(156, '\0')
  return `${header}x`.padEnd(512, '\0') + records.padEnd(512, '\0') + 'own header'.padEnd(512, '\0') + map
}

test('a map is taken only whole, in order and within the file', () => {
  assert.deepEqual(piecesIn(archive('2\n0\n512\n1024\n10\n\0\0'), 2048), [
    { offset: 0, length: 512 },
    { offset: 1024, length: 10 },
  ])
  assert.deepEqual(piecesIn(archive('2\n512\n512\n2048\n0\n'), 2048), [{ offset: 512, length: 512 }])
  const refused = ['', '0\n', '2\n0\n512\n1024\n', '1\n0\n4096\n', '2\n1024\n512\n0\n512\n', '1\n-1\n5\n', 'x']
  for (const map of refused) assert.equal(piecesIn(archive(map), 2048), undefined, JSON.stringify(map))
  assert.equal(piecesIn(archive('1\n0\n512\n', '0'), 2048), undefined)
  assert.equal(piecesIn('', 2048), undefined)
})
