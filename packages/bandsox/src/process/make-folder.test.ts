import assert from 'node:assert/strict'
import { stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { makeFolder, makeFolders } from './make-folder.js'

describe('making a folder', () => {
  it('makes those above it too, with the mode, and does not mind that it is there', async (t) => {
    const folder = path.join(await temporaryFolder(t), 'a/b/c')
    await Promise.all([makeFolder(folder, 0o700), makeFolder(folder, 0o700)])
    await makeFolder(folder)
    for (const each of [folder, path.dirname(folder)]) assert.equal((await stat(each)).mode & 0o777, 0o700)
  })

  it('makes several at once below one that nobody has made yet', async (t) => {
    const parent = await temporaryFolder(t)
    for (let round = 0; round < 200; round++) {
      const folders = ['a', 'b', 'c', 'd'].map((name) => path.join(parent, `${round}`, 'deep', name))
      await makeFolders(folders)
      for (const folder of folders) assert.ok((await stat(folder)).isDirectory())
    }
  })

  it('ends where nothing can be made, and says why', async (t) => {
    const file = path.join(await temporaryFolder(t), 'file')
    await writeFile(file, '')
    await assert.rejects(makeFolder('/proc/bandsox/deep'), { code: 'ENOENT' })
    for (const below of [file, path.join(file, 'a'), path.join(file, 'a/b')])
      await assert.rejects(makeFolder(below), { code: 'ENOTDIR' }, below)
  })
})
