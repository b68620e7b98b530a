import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import { mkdir, readdir, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { hasCode } from '../testing/errors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { Database } from './database.js'
import { connect } from './driver.js'

describe('the database', () => {
  it('waits for its turn, and lets this process go on meanwhile', async (t) => {
    const file = path.join(await temporaryFolder(t), 'a.db')
    const database = await Database.open(file)
    const other = connect(file)
    other.run('BEGIN IMMEDIATE')
    let ticks = 0
    const timer = setInterval(() => ticks++, 5)
    const writing = database.write((tables) => tables.change("UPDATE allocators SET next = 7 WHERE name = 'cid'"))
    await delay(200)
    other.run('COMMIT')
    await writing
    clearInterval(timer)
    assert.ok(ticks > 15, `the event loop stood still: ${ticks} ticks in 200 ms`)
    assert.equal(other.row("SELECT next FROM allocators WHERE name = 'cid'")?.['next'], 7)
    other.close()
    database.close()
  })

  it('leaves nothing of a transaction that failed', async (t) => {
    const file = path.join(await temporaryFolder(t), 'a.db')
    const database = await Database.open(file)
    await assert.rejects(
      database.write((tables) => {
        tables.change("UPDATE allocators SET next = 99 WHERE name = 'cid'")
        throw new Error('changed my mind')
      }),
      /changed my mind/,
    )
    const next = await database.read((tables) => tables.row("SELECT next FROM allocators WHERE name = 'cid'"))
    assert.equal(next?.['next'], 3)
    database.close()
  })

  it('refuses a newer one, and says with what it could be used', async (t) => {
    const file = path.join(await temporaryFolder(t), 'a.db')
    ;(await Database.open(file)).close()
    const raw = connect(file)
    raw.run('PRAGMA user_version = 999')
    raw.close()
    await assert.rejects(
      Database.open(file),
      hasCode('storage-newer', /has version 999 of its tables; this BandSox knows/),
    )
  })

  it("refuses another program's, and what is no database at all", async (t) => {
    const folder = await temporaryFolder(t)
    const foreign = connect(path.join(folder, 'foreign.db'))
    foreign.run('CREATE TABLE theirs (a)')
    foreign.close()
    await assert.rejects(
      Database.open(path.join(folder, 'foreign.db')),
      hasCode('storage-unusable', /of another program/),
    )
    await writeFile(path.join(folder, 'text.db'), 'this is not a database'.repeat(100))
    await assert.rejects(Database.open(path.join(folder, 'text.db')), hasCode('storage-unusable', /it is damaged/))
    await assert.rejects(Database.open(path.join(folder, 'no/such/folder.db')), { code: 'ENOENT' })
  })

  it('is made by one of many at once', async (t) => {
    const file = path.join(await temporaryFolder(t), 'a.db')
    const databases = await Promise.all(Array.from({ length: 8 }, () => Database.open(file)))
    for (const database of databases) database.close()
  })

  it('copies one of an earlier version before it changes it', async (t) => {
    const folder = await temporaryFolder(t)
    const file = path.join(folder, 'a.db')
    ;(await Database.open(file, ['CREATE TABLE a (x) STRICT;'.replace('(x)', '(x TEXT)')])).close()
    const raw = connect(file)
    raw.run("INSERT INTO a VALUES ('kept')")
    raw.close()
    const steps = [
      'CREATE TABLE a (x TEXT) STRICT;',
      'ALTER TABLE a ADD COLUMN y TEXT;',
      'CREATE TABLE b (z TEXT) STRICT;',
    ]
    const database = await Database.open(file, steps)
    assert.deepEqual({ ...(await database.read((tables) => tables.row('SELECT * FROM a'))) }, { x: 'kept', y: null })
    database.close()
    assert.deepEqual(
      (await readdir(folder)).filter((name) => name.includes('backup')),
      ['a.db.backup-v1'],
    )
    const backup = connect(path.join(folder, 'a.db.backup-v1'))
    assert.deepEqual({ ...backup.row('SELECT * FROM a') }, { x: 'kept' })
    backup.close()
  })

  it('keeps the copy of the version that it was, however many bring it to the next one at once', async (t) => {
    const steps = ['CREATE TABLE a (x TEXT) STRICT;', 'ALTER TABLE a ADD COLUMN y TEXT;']
    for (let round = 0; round < 5; round++) {
      const file = path.join(await temporaryFolder(t), 'a.db')
      ;(await Database.open(file, steps.slice(0, 1))).close()
      const databases = await Promise.all(Array.from({ length: 6 }, () => Database.open(file, steps)))
      for (const database of databases) database.close()
      const backup = connect(`${file}.backup-v1`)
      assert.equal(backup.row('PRAGMA user_version')?.['user_version'], 1)
      backup.close()
      assert.equal((await stat(`${file}.backup-v1`)).mode & 0o777, 0o600)
      assert.deepEqual(
        (await readdir(path.dirname(file))).filter((name) => /backup-v1\.\d/.test(name)),
        [],
      )
    }
  })

  it('leaves one of an earlier version as it was when a step fails', async (t) => {
    const file = path.join(await temporaryFolder(t), 'a.db')
    ;(await Database.open(file, ['CREATE TABLE a (x TEXT) STRICT;'])).close()
    const broken = [
      'CREATE TABLE a (x TEXT) STRICT;',
      'CREATE TABLE b (z TEXT) STRICT;',
      'CREATE TABLE a (again TEXT);',
    ]
    await assert.rejects(Database.open(file, broken), /already exists/)
    const database = await Database.open(file, ['CREATE TABLE a (x TEXT) STRICT;'])
    assert.equal(await database.read((tables) => tables.row("SELECT 1 FROM sqlite_schema WHERE name = 'b'")), undefined)
    database.close()
  })

  it('can still be written when its disk is full, from what it has kept for that', { skip: mountable() }, async (t) => {
    const folder = path.join(await temporaryFolder(t), 'small')
    await mkdir(folder)
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=48m', 'bandsox-test', folder])
    try {
      await fillAndWrite(folder)
    } finally {
      execFileSync('umount', ['--lazy', folder]) // the driver's descriptors last until they are collected
    }
  })
})

async function fillAndWrite(folder: string): Promise<void> {
  let database = await Database.open(path.join(folder, 'a.db'))
  try {
    const write = (count: number) =>
      database.write((tables) => {
        for (let index = 0; index < count; index++)
          tables.change("INSERT INTO events (at, sandbox, kind) VALUES ('', 'x', $kind)", { kind: 'k'.repeat(1_000) })
      })
    assert.throws(() => writeFileSync(path.join(folder, 'filler'), Buffer.alloc(64 * 1024 * 1024)), { code: 'ENOSPC' })
    await write(500)
    database.close()
    // Its memory that all share is made anew by whoever opens it next, and needs room.
    database = await Database.open(path.join(folder, 'a.db'))
    const writeOn = async () => {
      for (;;) await write(500)
    }
    await assert.rejects(writeOn, hasCode('no-space', /no space is left on its disk/))
  } finally {
    database.close()
  }
}

/** @returns Why a test that mounts is skipped. */
function mountable(): string | false {
  if (process.getuid?.() !== 0) return 'mounting needs root'
  return spawnSync('unshare', ['--mount', 'true']).status === 0 ? false : 'this host lets nobody mount'
}
