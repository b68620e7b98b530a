import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, readdir, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import type { BandSoxError } from '@bandsox/sdk'
import { identifySelf } from '../process/identity.js'
import { hasCode } from '../testing/errors.js'
import { runModule } from '../testing/module-process.js'
import { sampleRecord } from '../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { Database } from './database.js'
import type { SandboxRecord } from './record.js'
import { filtered } from './sandbox-filter.js'
import { newSandboxId, SandboxStore } from './sandbox-store.js'

const since = '2026-01-01T00:00:00.000Z'

async function storeWith(t: TestScope, ...records: Partial<SandboxRecord>[]): Promise<SandboxStore> {
  const store = await SandboxStore.open(path.join(await temporaryFolder(t), 'storage'))
  t.after(() => store.close())
  for (const record of records) {
    const claim = await store.insert(sampleRecord(record))
    await store.makeDirectory(claim.record.id)
    await claim.release()
  }
  return store
}

const idOf = async (store: SandboxStore, name: string) => (await store.find(name)).id
const ids = async (store: SandboxStore) => (await store.list()).map(({ id }) => id)

/** Changes a row as no code of ours does: what another process, or a killed one, may have left. */
async function change(store: SandboxStore, sql: string, values: Record<string, string | number | null> = {}) {
  const database = await Database.open(path.join(store.root, 'bandsox.db'))
  try {
    await database.write((tables) => tables.change(sql, values))
  } finally {
    database.close()
  }
}

const setHolder = (store: SandboxStore, id: string, name: string, holder: object) =>
  change(
    store,
    `UPDATE sandboxes SET operation = $name, operation_since = $since, operation_token = 'x', holder = $holder
     WHERE id = $id`,
    { id, name, since, holder: JSON.stringify(holder) },
  )

describe('the store', () => {
  it('keeps a record, and keeps others out of the folders', async (t) => {
    const record = sampleRecord({
      ...{ id: 'sbx_aaaaaaaaaa', name: 'one', labels: { env: 'prod' }, metadata: { nested: { list: [1, null] } } },
      ...{ env: { PATH: '/bin' }, timings: { hello: 3 } },
    })
    const store = await storeWith(t, record)
    assert.deepEqual(await store.read(record.id), record)
    assert.deepEqual(await ids(store), [record.id])
    const mode = async (...parts: string[]) => ((await stat(path.join(store.root, ...parts))).mode & 0o777).toString(8)
    assert.deepEqual([await mode(), await mode('vms'), await mode('vms', record.id)], ['700', '700', '711'])
    assert.equal(await mode('bandsox.db'), '600')
  })

  it('gives its folders their modes under any umask', async (t) => {
    const umask = process.umask(0o077)
    t.after(() => void process.umask(umask))
    const store = await storeWith(t, { id: 'sbx_aaaaaaaaaa' })
    assert.equal((await stat(store.directoryOf('sbx_aaaaaaaaaa'))).mode & 0o777, 0o711)
  })

  it('finds by id, by unique prefix with or without sbx_, by name, and by the id of an earlier life', async (t) => {
    const store = await storeWith(
      t,
      { id: 'sbx_abcaaaaaaa', name: 'web' },
      { id: 'sbx_abdaaaaaaa', importedFrom: 'e3039fdb-50b1-4e29-b2ad-c18768818398' },
      { id: 'sbx_xyzaaaaaaa', name: 'abd' },
    )
    assert.equal(await idOf(store, 'sbx_abcaaaaaaa'), 'sbx_abcaaaaaaa')
    assert.equal(await idOf(store, 'sbx_abd'), 'sbx_abdaaaaaaa')
    assert.equal(await idOf(store, 'e3039fdb-50b1-4e29-b2ad-c18768818398'), 'sbx_abdaaaaaaa')
    assert.equal(await idOf(store, 'xy'), 'sbx_xyzaaaaaaa')
    assert.equal(await idOf(store, 'web'), 'sbx_abcaaaaaaa')
    assert.equal(await idOf(store, 'abd'), 'sbx_xyzaaaaaaa') // a name goes before a prefix
    for (const none of ['zzz', '', 'we', '../vms', 'sbx_', 's', '*', '[a-z]', "' OR 1"]) {
      await assert.rejects(store.find(none), hasCode('not-found'), none)
    }
    await assert.rejects(
      store.find('ab'),
      hasCode('ambiguous-name', /"ab" means 2 sandboxes: sbx_abcaaaaaaa \(stopped\), sbx_abdaaaaaaa/),
    )
  })

  it('does not choose between sandboxes of one name, and refuses it where it is to be unique', async (t) => {
    const store = await storeWith(t, { id: 'sbx_aaaaaaaaaa', name: 'web' }, { id: 'sbx_bbbbbbbbbb', name: 'web' })
    await assert.rejects(store.find('web'), hasCode('ambiguous-name', /sbx_aaaaaaaaaa.*sbx_bbbbbbbbbb/))
    assert.equal(await idOf(store, 'sbx_b'), 'sbx_bbbbbbbbbb')
    const third = sampleRecord({ id: 'sbx_cccccccccc', name: 'web' })
    await assert.rejects(store.insert(third, { unique: true }), hasCode('name-taken', /web is taken by sandbox sbx_/))
    await assert.rejects(
      store.describe('sbx_aaaaaaaaaa', () => ({}), { unique: true }),
      hasCode('name-taken'),
    )
    await store.describe('sbx_bbbbbbbbbb', () => ({ name: 'db' }))
    await store.describe('sbx_aaaaaaaaaa', () => ({}), { unique: true })
    assert.deepEqual(await ids(store), ['sbx_aaaaaaaaaa', 'sbx_bbbbbbbbbb'])
  })

  it('is the same for every process that opens it', async (t) => {
    const store = await storeWith(t, { id: 'sbx_aaaaaaaaaa' })
    const other = await SandboxStore.open(store.root)
    t.after(() => other.close())
    await other.describe('sbx_aaaaaaaaaa', () => ({ name: 'seen' }))
    assert.equal((await store.read('sbx_aaaaaaaaaa'))?.name, 'seen')
  })

  it('removes all of a sandbox, also what a removal had left half done, and does not mind doing it twice', async (t) => {
    const store = await storeWith(t, { id: 'sbx_aaaaaaaaaa' })
    await mkdir(path.join(store.directoryOf('sbx_aaaaaaaaaa'), 'vsock'))
    const half = path.join(store.root, 'vms', '.removed-sbx_aaaaaaaaaa')
    await mkdir(half)
    await writeFile(path.join(half, 'overlay.ext4'), 'x')
    await store.remove('sbx_aaaaaaaaaa')
    await store.remove('sbx_aaaaaaaaaa')
    assert.deepEqual([await readdir(path.join(store.root, 'vms')), await ids(store)], [[], []])
  })

  it("knows which entries of its folder are nobody's", async (t) => {
    const store = await storeWith(t, { id: 'sbx_aaaaaaaaaa' })
    const vms = path.join(store.root, 'vms')
    for (const name of ['.removed-sbx_aaaaaaaaaa', '.removed-sbx_bbbbbbbbbb', 'sbx_cccccccccc', 'other'])
      await mkdir(path.join(vms, name))
    const strangers = (await store.strangers()).map(({ name, id }) => [name, id]).sort()
    assert.deepEqual(strangers, [
      ['.removed-sbx_bbbbbbbbbb', 'sbx_bbbbbbbbbb'],
      ['other', undefined],
      ['sbx_cccccccccc', 'sbx_cccccccccc'],
    ])
  })

  it('cannot be made to say what must not be: the rules are in its tables', async (t) => {
    const store = await storeWith(t, { id: 'sbx_aaaaaaaaaa' }, { id: 'sbx_bbbbbbbbbb' })
    const forbidden = [
      "state = 'running'", // without numbers
      'cid = 3', // and no port
      'cid = 3, port = 9000', // at rest, with nobody who starts it
      "state = 'creating'", // with nobody who makes it
      "state = 'gone'",
      "state = 'failed'", // and no reason
      "cid = 2, port = 9000, state = 'running'",
      "cid = 3, port = 8999, state = 'running'",
      "labels = 'x'",
    ]
    for (const what of forbidden)
      await assert.rejects(
        change(store, `UPDATE sandboxes SET ${what} WHERE id = 'sbx_aaaaaaaaaa'`),
        /CHECK constraint failed/,
        what,
      )
    const running = "UPDATE sandboxes SET cid = 3, port = 9000, state = 'running' WHERE id = $id"
    await change(store, running, { id: 'sbx_aaaaaaaaaa' })
    await assert.rejects(change(store, running, { id: 'sbx_bbbbbbbbbb' }), /UNIQUE constraint failed/)
  })

  it('tells what happened, in order, and keeps a bounded number of it', async (t) => {
    const store = await storeWith(t, { id: 'sbx_aaaaaaaaaa', name: 'web' })
    await store.describe('sbx_aaaaaaaaaa', () => ({ name: 'db' }))
    await store.transition('sbx_aaaaaaaaaa', { state: { kind: 'failed', since, reason: 'it died' } })
    await store.remove('sbx_aaaaaaaaaa')
    const events = (await store.events(0)).map(({ kind, name, reason }) => [kind, name, reason])
    assert.deepEqual(events, [
      ['created', 'web', undefined],
      ['renamed', 'db', undefined],
      ['failed', 'db', 'it died'],
      ['deleted', 'db', undefined],
    ])
    assert.deepEqual(
      (await store.events(3)).map(({ kind }) => kind),
      ['deleted'],
    )
    await change(
      store,
      `WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10005)
       INSERT INTO events (at, sandbox, kind) SELECT '', 'x', 'x' FROM n`,
    )
    assert.equal((await store.events(0))[0]?.sequence, 10)
  })

  it('makes ids that are different, and can be typed', () => {
    const made = new Set(Array.from({ length: 1_000 }, newSandboxId))
    assert.equal(made.size, 1_000)
    for (const id of made) assert.match(id, /^sbx_[a-z2-7]{10}$/)
  })
})

describe('a filter', () => {
  const records = [
    sampleRecord({ id: 'sbx_aaaaaaaaaa', name: 'web', labels: { env: 'prod' }, metadata: { tags: ['a'], n: 1 } }),
    sampleRecord({ id: 'sbx_bbbbbbbbbb', labels: { env: 'test' }, state: { kind: 'failed', since, reason: 'r' } }),
  ]
  const found = (filter: Parameters<typeof filtered>[1]) =>
    filtered(records, filter)
      .map(({ id }) => id.slice(4, 5))
      .join('')

  it('leaves in what matches in every field', () => {
    assert.equal(found({}), 'ab')
    assert.equal(found({ states: ['failed'] }), 'b')
    assert.equal(found({ labels: { env: null } }), 'ab')
    assert.equal(found({ labels: { env: 'prod' } }), 'a')
    assert.equal(found({ labels: { env: 'prod', zone: null } }), '')
    assert.equal(found({ labels: { toString: null } }), '')
    assert.equal(found({ metadata: { tags: ['a'] } }), 'a')
    assert.equal(found({ metadata: { tags: ['a'], n: 2 } }), '')
    assert.equal(found({ name: 'web' }), 'a')
    assert.equal(found({ limit: 1 }), 'b')
    assert.equal(found({ limit: 0 }), '')
  })
})

describe('an operation', () => {
  const HOLD = `
    const { SandboxStore } = await import(url('./sandbox-store.js'))
    const store = await SandboxStore.open(args[0])
    await store.claim('sbx_aaaaaaaaaa', 'stop')
    console.log('claimed')
    setInterval(() => undefined, 1_000)`

  it('is one at a time, which others are told of', async (t) => {
    const store = await storeWith(t, {})
    const claim = await store.claim('sbx_aaaaaaaaaa', 'stop')
    assert.equal((await store.read('sbx_aaaaaaaaaa'))?.operation?.name, 'stop')
    await assert.rejects(
      store.claim('sbx_aaaaaaaaaa', 'delete'),
      hasCode('busy', /^sandbox sbx_aaaaaaaaaa is busy: stop is in progress \(this process\)$/),
    )
    assert.equal(await store.takeOver('sbx_aaaaaaaaaa'), undefined)
    await claim?.release()
    const next = await store.claim('sbx_aaaaaaaaaa', 'delete')
    await claim?.release() // a second time: it is another one's by now
    assert.equal((await store.read('sbx_aaaaaaaaaa'))?.operation?.name, 'delete')
    await next?.release()
    assert.equal((await store.read('sbx_aaaaaaaaaa'))?.operation, undefined)
    await assert.rejects(store.claim('sbx_zzzzzzzzzz', 'stop'), hasCode('not-found'))
  })

  it('holds between processes; that of a dead one is taken over, and not begun over', async (t) => {
    const store = await storeWith(t, {})
    const holder = runModule(t, import.meta.url, HOLD, [store.root])
    await holder.printed('claimed')
    await assert.rejects(
      store.claim('sbx_aaaaaaaaaa', 'delete'),
      hasCode('busy', new RegExp(`process ${holder.child.pid}`)),
    )
    holder.child.kill('SIGKILL')
    await once(holder.child, 'close')
    assert.equal(await store.claim('sbx_aaaaaaaaaa', 'delete'), undefined)
    const claim = await store.takeOver('sbx_aaaaaaaaaa')
    assert.equal(claim?.interrupted, 'stop')
    await claim.release()
    assert.ok((await store.claim('sbx_aaaaaaaaaa', 'delete')) !== undefined)
  })

  it('that removes stays a removal when it is taken over', async (t) => {
    const store = await storeWith(t, {})
    await setHolder(store, 'sbx_aaaaaaaaaa', 'delete', { pid: 2 ** 22 + 1, startTime: 1, bootId: 'b', pidNamespace: 1 })
    assert.equal((await store.takeOver('sbx_aaaaaaaaaa'))?.record.operation?.name, 'delete')
  })

  it('is still known when who took it over died at that as well', async (t) => {
    const store = await storeWith(t, {})
    const dead = { pid: 2 ** 22 + 1, startTime: 1, bootId: 'b', pidNamespace: 1 }
    await setHolder(store, 'sbx_aaaaaaaaaa', 'snapshot', dead)
    for (let round = 0; round < 3; round++) {
      const claim = await store.takeOver('sbx_aaaaaaaaaa')
      assert.equal(claim?.interrupted, 'snapshot')
      const name = claim.record.operation?.name ?? ''
      assert.equal(name, 'cleanup after snapshot')
      await setHolder(store, 'sbx_aaaaaaaaaa', name, dead)
    }
    const claim = await store.takeOver('sbx_aaaaaaaaaa')
    await claim?.release()
    await setHolder(store, 'sbx_aaaaaaaaaa', 'cleanup', dead)
    const looked = await store.takeOver('sbx_aaaaaaaaaa')
    assert.notEqual(looked, undefined)
    assert.equal(looked?.interrupted, undefined)
  })

  it('ends on several sandboxes at once, or on none of them', async (t) => {
    const store = await storeWith(t)
    const claims = await Promise.all(
      ['sbx_aaaaaaaaaa', 'sbx_bbbbbbbbbb'].map((id) => store.insert(sampleRecord({ id }), { operation: 'restore' })),
    )
    const names = async () => (await store.list()).map(({ operation }) => operation?.name)
    await assert.rejects(store.releaseTogether(['sbx_aaaaaaaaaa', 'sbx_zzzzzzzzzz']), hasCode('not-found'))
    assert.deepEqual(await names(), ['restore', 'restore'])
    await store.releaseTogether(claims.map(({ record: { id } }) => id))
    assert.deepEqual(await names(), [undefined, undefined])
  })

  it("is over when its pid is another process's now, or of another boot", async (t) => {
    const store = await storeWith(t, {})
    const self = await identifySelf()
    for (const holder of [
      { ...self, startTime: self.startTime - 1 },
      { ...self, bootId: '0'.repeat(32) },
    ]) {
      await setHolder(store, 'sbx_aaaaaaaaaa', 'stop', holder)
      const claim = await store.takeOver('sbx_aaaaaaaaaa')
      assert.equal(claim?.interrupted, 'stop')
      await claim.release()
    }
  })

  it('of another container says what to do when that is gone', async (t) => {
    const store = await storeWith(t, {})
    await setHolder(store, 'sbx_aaaaaaaaaa', 'stop', { ...(await identifySelf()), pid: 4_194_305, pidNamespace: 1 })
    await assert.rejects(store.claim('sbx_aaaaaaaaaa', 'delete'), (error) => {
      assert.ok(hasCode('busy', /stop is in progress \(process 4194305\)/)(error))
      assert.match((error as BandSoxError).hint ?? '', /another container; .*bandsox cleanup --forget sbx_aaaaaaaaaa$/)
      return true
    })
    await store.forgetOperation('sbx_aaaaaaaaaa')
    assert.equal((await store.takeOver('sbx_aaaaaaaaaa'))?.interrupted, 'stop')
  })

  it('of a process that can be seen is not forgotten', async (t) => {
    const store = await storeWith(t, {})
    const claim = await store.claim('sbx_aaaaaaaaaa', 'stop')
    await assert.rejects(
      store.forgetOperation('sbx_aaaaaaaaaa'),
      hasCode('wrong-state', /no operation of another container/),
    )
    await claim?.release()
  })

  it('that was taken away finds out when it next writes, and writes nothing', async (t) => {
    const store = await storeWith(t, {})
    const other = await SandboxStore.open(store.root)
    t.after(() => other.close())
    const stop = await store.claim('sbx_aaaaaaaaaa', 'stop')
    const kill = await other.claim('sbx_aaaaaaaaaa', 'kill', { instead: ['stop'] })
    const state = { kind: 'failed', since, reason: 'too late' } as const
    await assert.rejects(
      store.transition('sbx_aaaaaaaaaa', { state }),
      hasCode('busy', /was taken over by another command: kill is in progress/),
    )
    await assert.rejects(store.takeNumbers('sbx_aaaaaaaaaa'), hasCode('busy'))
    await assert.rejects(store.remove('sbx_aaaaaaaaaa'), hasCode('busy'))
    await stop?.release() // harmless: it is not its own any more
    assert.equal((await other.read('sbx_aaaaaaaaaa'))?.operation?.name, 'kill')
    await kill?.release()
    assert.equal((await store.read('sbx_aaaaaaaaaa'))?.state.kind, 'stopped')
  })

  it('that failed half-way is for the next to set right, also in this process', async (t) => {
    const store = await storeWith(t, {})
    const claim = await store.claim('sbx_aaaaaaaaaa', 'delete')
    await claim?.abandon()
    assert.equal(await store.claim('sbx_aaaaaaaaaa', 'start'), undefined)
    assert.equal((await store.takeOver('sbx_aaaaaaaaaa'))?.interrupted, 'delete')
  })

  it('left by a dead process is taken over by one of many', async (t) => {
    const store = await storeWith(t, {})
    for (let round = 0; round < 10; round++) {
      await setHolder(store, 'sbx_aaaaaaaaaa', 'stop', { pid: 2 ** 22 + 1, startTime: 1, bootId: 'b', pidNamespace: 1 })
      const claims = await Promise.all(Array.from({ length: 8 }, () => store.takeOver('sbx_aaaaaaaaaa')))
      const won = claims.filter((claim) => claim !== undefined)
      assert.equal(won.length, 1)
      await won[0]?.release()
    }
  })

  it('keeps processes apart that want it all the time', async (t) => {
    const store = await storeWith(t, {})
    const code = `
      const { SandboxStore } = await import(url('./sandbox-store.js'))
      const { open, rm } = await import('node:fs/promises')
      const { setTimeout: delay } = await import('node:timers/promises')
      const store = await SandboxStore.open(args[0])
      let done = 0
      while (done < 15) {
        let claim
        try {
          claim = await store.claim('sbx_aaaaaaaaaa', 'work')
        } catch (error) {
          if (error.code !== 'busy') throw error
          await delay(Math.random() * 4)
          continue
        }
        // Made exclusively: a second holder would fail here.
        await (await open(args[0] + '/vms/inside', 'wx')).close()
        await rm(args[0] + '/vms/inside')
        await claim.release()
        done++
      }
      console.log('done ' + done)`
    const processes = Array.from({ length: 3 }, () => runModule(t, import.meta.url, code, [store.root]))
    assert.deepEqual(await Promise.all(processes.map(({ done }) => done)), ['done 15\n', 'done 15\n', 'done 15\n'])
  })
})
