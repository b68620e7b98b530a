import assert from 'node:assert/strict'
import { mkdir, readdir, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { z } from 'zod'
import { hasCode } from '../testing/errors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { readJsonFile, removeUnfinished, writeJsonFile, writePassingJsonFile } from './json-file.js'

const schema = z.object({ round: z.number(), filler: z.string() })

describe('a JSON file', () => {
  it('is read as it was written, by its owner alone', async (t) => {
    const file = path.join(await temporaryFolder(t), 'f.json')
    await writeJsonFile(file, { round: 1, filler: 'ü' })
    assert.deepEqual(await readJsonFile(file, schema), { round: 1, filler: 'ü' })
    assert.equal((await stat(file)).mode & 0o777, 0o600)
    writePassingJsonFile(file, { round: 2, filler: 'ü' })
    assert.deepEqual(await readJsonFile(file, schema), { round: 2, filler: 'ü' })
    assert.equal((await stat(file)).mode & 0o777, 0o600)
  })

  it('is whole at every moment, and leaves nothing beside it', async (t) => {
    const folder = await temporaryFolder(t)
    const file = path.join(folder, 'f.json')
    const filler = 'x'.repeat(100_000)
    let isWriting = true
    const writing = (async () => {
      for (let round = 0; round < 40; round++) await writeJsonFile(file, { round, filler })
      isWriting = false
    })()
    let last = -1
    while (isWriting) {
      const read = await readJsonFile(file, schema)
      await setImmediate() // the writer's turn
      if (read === undefined) continue // before the first
      assert.ok(read.round >= last)
      assert.equal(read.filler.length, filler.length)
      last = read.round
    }
    await writing
    assert.deepEqual(await readdir(folder), ['f.json'])
  })

  it('that is not there is undefined, also for a folder that is not', async (t) => {
    const folder = await temporaryFolder(t)
    assert.equal(await readJsonFile(path.join(folder, 'no.json'), schema), undefined)
    assert.equal(await readJsonFile(path.join(folder, 'no', 'no.json'), schema), undefined)
  })

  it('that is damaged, or of another shape, says so and what to do', async (t) => {
    const file = path.join(await temporaryFolder(t), 'f.json')
    for (const content of ['', '{"round": 1', '[]', '{"round":"1","filler":""}', '\0\0\0']) {
      await writeFile(file, content)
      await assert.rejects(readJsonFile(file, schema), (error) => {
        assert.ok(hasCode('artifact-damaged', /f\.json/)(error))
        assert.ok(error instanceof Error && error.cause instanceof Error)
        return true
      })
    }
  })

  it('that cannot be put in place leaves nothing beside it', async (t) => {
    const folder = await temporaryFolder(t)
    await mkdir(path.join(folder, 'f.json', 'full'), { recursive: true })
    await assert.rejects(writeJsonFile(path.join(folder, 'f.json'), {}), { code: 'EISDIR' })
    assert.throws(() => writePassingJsonFile(path.join(folder, 'f.json'), {}), { code: 'EISDIR' })
    assert.deepEqual(await readdir(folder), ['f.json'])
  })

  it('has what a killed writer left beside it removed, and nothing else', async (t) => {
    const folder = await temporaryFolder(t)
    for (const name of ['f.json', 'f.json.0123abcd.tmp', 'f.tmp', 'notes.0123abcd'])
      await writeFile(path.join(folder, name), '')
    await removeUnfinished(folder)
    assert.deepEqual((await readdir(folder)).sort(), ['f.json', 'f.tmp', 'notes.0123abcd'])
    await removeUnfinished(path.join(folder, 'gone'))
  })
})
