/** CIDs and ports, by the rules that the earlier project's users were promised. */
import assert from 'node:assert/strict'
import path from 'node:path'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { runModule } from '../testing/module-process.js'
import { sampleRecord } from '../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { Database } from './database.js'
import { newSandboxId, SandboxStore } from './sandbox-store.js'

const since = '2026-01-01T00:00:00.000Z'

async function emptyStore(t: TestScope): Promise<SandboxStore> {
  const store = await SandboxStore.open(path.join(await temporaryFolder(t), 'storage'))
  t.after(() => store.close())
  return store
}

async function reopened(t: TestScope, { root }: SandboxStore): Promise<SandboxStore> {
  const store = await SandboxStore.open(root)
  t.after(() => store.close())
  return store
}

/** Starts a sandbox as far as its numbers go. */
async function start(store: SandboxStore): Promise<{ id: string; cid: number; port: number }> {
  const { record } = await store.insert(sampleRecord({ id: newSandboxId(), state: { kind: 'creating', since } }))
  const numbers = await store.takeNumbers(record.id)
  await store.transition(record.id, { state: { kind: 'running', since } })
  return { id: record.id, ...numbers }
}

const stop = (store: SandboxStore, { id }: { id: string }) =>
  store.transition(id, { state: { kind: 'stopped', since }, releaseNumbers: true })

async function startMany(store: SandboxStore, count: number) {
  const started = []
  for (let index = 0; index < count; index++) started.push(await start(store))
  return started
}

describe('CIDs', () => {
  it('allocate_cid_increments: 3, 4, 5 on a fresh state', async (t) => {
    const store = await emptyStore(t)
    assert.deepEqual(
      (await startMany(store, 3)).map(({ cid }) => cid),
      [3, 4, 5],
    )
  })

  it('release_cid_allows_reuse: a released one is the next one given', async (t) => {
    const store = await emptyStore(t)
    const [, second] = await startMany(store, 3)
    assert.ok(second !== undefined)
    await stop(store, second)
    assert.deepEqual([(await start(store)).cid, (await start(store)).cid], [4, 6])
  })

  it('cid_state_persists: a second manager on the same storage sees it', async (t) => {
    const store = await emptyStore(t)
    await startMany(store, 2)
    const other = await reopened(t, store)
    assert.equal((await start(other)).cid, 5)
    assert.deepEqual((await store.numbers()).cids, { free_cids: [], next_cid: 6 })
  })

  it('multiple_cids_released: the lowest is given first, whatever the order of release', async (t) => {
    const store = await emptyStore(t)
    const [first, second, third] = await startMany(store, 4)
    assert.ok(first !== undefined && second !== undefined && third !== undefined)
    for (const each of [third, first, second]) await stop(store, each)
    assert.deepEqual((await store.numbers()).cids, { free_cids: [3, 4, 5], next_cid: 7 })
    assert.deepEqual(
      (await startMany(store, 4)).map(({ cid }) => cid),
      [3, 4, 5, 7],
    )
  })

  it('that others on this host have are passed over', async (t) => {
    const store = await emptyStore(t)
    const { id } = await start(store)
    assert.equal((await store.takeNumbers(id, { above: 10 })).cid, 11)
    assert.equal((await start(store)).cid, 3)
  })
})

describe('ports', () => {
  it('allocate_port_in_pool: within 9000–9999, and different', async (t) => {
    const store = await emptyStore(t)
    const [first, second] = (await startMany(store, 2)).map(({ port }) => port)
    assert.deepEqual([first, second], [9000, 9001])
  })

  it('release_port_allows_reuse: not at once, the next is the next number; again after the wrap', async (t) => {
    const store = await emptyStore(t)
    const first = await start(store)
    await stop(store, first)
    assert.equal((await start(store)).port, 9001)
    await setNextPort(store, 9999)
    assert.deepEqual([(await start(store)).port, (await start(store)).port], [9999, 9000])
    assert.equal((await start(store)).port, 9002, '9001 is held')
  })

  it('no_duplicate_active_ports: ten in a row, all different', async (t) => {
    const store = await emptyStore(t)
    assert.equal(new Set((await startMany(store, 10)).map(({ port }) => port)).size, 10)
  })

  it('port_state_persists: across managers', async (t) => {
    const store = await emptyStore(t)
    const started = await start(store)
    await stop(store, started)
    const other = await reopened(t, store)
    assert.deepEqual((await other.numbers()).ports, { next_port: 9001, used_ports: [] })
    assert.equal((await start(other)).port, 9001)
    assert.deepEqual((await store.numbers()).ports, { next_port: 9002, used_ports: [9001] })
  })

  it('that are all held are an error that says so, and one that is released is found wherever it is', async (t) => {
    const store = await emptyStore(t)
    await fillPorts(store)
    const { record } = await store.insert(sampleRecord({ state: { kind: 'creating', since } }))
    await assert.rejects(
      store.takeNumbers(record.id),
      hasCode('host-resource', /^No available port: all of 9000–9999 are held by running sandboxes$/),
    )
    assert.equal((await store.read(record.id))?.cid, null, 'no CID is kept of a start that got no port')
    const middle = (await store.list()).find(({ port }) => port === 9500)
    assert.ok(middle !== undefined)
    await stop(store, middle)
    assert.equal((await store.takeNumbers(record.id)).port, 9500)
  })
})

describe('a new sandbox', () => {
  it('vsock_instance_variables: has no CID, no port, and no machine with a socket', async (t) => {
    const store = await emptyStore(t)
    const { record } = await store.insert(sampleRecord({ state: { kind: 'creating', since } }))
    const { cid, port, machine } = (await store.read(record.id)) ?? record
    assert.deepEqual([cid, port, machine], [null, null, undefined])
  })
})

describe('a reset', () => {
  it('begins anew, and is refused while any sandbox holds numbers', async (t) => {
    const store = await emptyStore(t)
    const started = await start(store)
    await assert.rejects(
      store.resetNumbers(),
      hasCode('wrong-state', new RegExp(`a sandbox holds some: ${started.id}`)),
    )
    await stop(store, started)
    await store.resetNumbers()
    assert.deepEqual(await store.numbers(), {
      cids: { free_cids: [], next_cid: 3 },
      ports: { next_port: 9000, used_ports: [] },
    })
    assert.deepEqual(await start(store).then(({ cid, port }) => [cid, port]), [3, 9000])
  })
})

describe("the earlier project's numbers", () => {
  it('are not given, and ours go on after them', async (t) => {
    const store = await emptyStore(t)
    await store.beginNumbersAfter({ cid: 6, port: 9003 })
    const fresh = { cids: { free_cids: [], next_cid: 6 }, ports: { next_port: 9003, used_ports: [] } }
    assert.deepEqual(await store.numbers(), fresh)
    const first = await start(store)
    assert.deepEqual([first.cid, first.port], [6, 9003])
    await start(store)
    await stop(store, first)
    assert.deepEqual((await store.numbers()).cids, { free_cids: [6], next_cid: 8 })
    // A second import changes nothing, and takes nothing back.
    await store.beginNumbersAfter({ cid: 6, port: 9003 })
    assert.deepEqual([(await start(store)).cid, (await start(store)).port], [6, 9006])
    assert.deepEqual(await store.takeNumbers((await start(store)).id, { above: 9 }), { cid: 10, port: 9007 })
  })

  it('are given after all others, so that an absurd one takes nothing away', async (t) => {
    const store = await emptyStore(t)
    await store.beginNumbersAfter({ cid: 65_535, port: 9999 })
    const started = await startMany(store, 3)
    assert.deepEqual(
      started.map(({ cid, port }) => [cid, port]),
      [
        [65_535, 9999],
        [3, 9000],
        [4, 9001],
      ],
    )
    const [last] = started
    assert.ok(last !== undefined)
    await assert.rejects(store.takeNumbers(last.id, { above: 65_535 }), hasCode('host-resource'))
  })

  it('that are none are passed over, and a reset forgets them', async (t) => {
    const store = await emptyStore(t)
    for (const number of [-1, 0, 2 ** 32, Number.MAX_SAFE_INTEGER])
      await store.beginNumbersAfter({ cid: number, port: number })
    const fresh = { cids: { free_cids: [], next_cid: 3 }, ports: { next_port: 9000, used_ports: [] } }
    assert.deepEqual(await store.numbers(), fresh)
    await store.beginNumbersAfter({ cid: 40, port: 9040 })
    await store.resetNumbers()
    assert.deepEqual(await store.numbers(), fresh)
    assert.equal((await start(store)).cid, 3)
  })
})

describe('numbers among processes', () => {
  const PROCESSES = process.env['BANDSOX_SOAK'] === '1' ? 64 : 16
  const ROUNDS = process.env['BANDSOX_SOAK'] === '1' ? 50 : 10

  it(`are never given twice: ${PROCESSES} processes, ${ROUNDS} each`, async (t) => {
    const store = await emptyStore(t)
    // Of five that each takes it keeps one, so that numbers go round.
    const code = `
      const { SandboxStore, newSandboxId } = await import(url('./sandbox-store.js'))
      const { sampleRecord } = await import(url('../testing/sample-record.js'))
      const store = await SandboxStore.open(args[0])
      const since = '2026-01-01T00:00:00.000Z'
      for (let round = 0; round < Number(args[1]); round++) {
        const { record } = await store.insert(sampleRecord({ id: newSandboxId(), state: { kind: 'creating', since } }))
        const { cid, port } = await store.takeNumbers(record.id)
        await store.transition(record.id, { state: { kind: 'running', since } })
        console.log('+ ' + cid + ' ' + port)
        if (round % 5 > 0) await store.transition(record.id, { state: { kind: 'stopped', since }, releaseNumbers: true })
      }
      console.log('done')`
    const processes = Array.from({ length: PROCESSES }, () =>
      runModule(t, import.meta.url, code, [store.root, String(ROUNDS)]),
    )
    const outputs = await Promise.all(processes.map(({ done }) => done))
    assert.equal(outputs.filter((output) => output.endsWith('done\n')).length, PROCESSES)
    const allocated = outputs.flatMap((output) => output.split('\n').filter((line) => line.startsWith('+'))).length
    assert.equal(allocated, PROCESSES * ROUNDS)
    const held = (await store.list()).filter(({ cid }) => cid !== null)
    assert.equal(held.length, (PROCESSES * ROUNDS) / 5)
    assert.equal(new Set(held.map(({ cid }) => cid)).size, held.length)
    assert.equal(new Set(held.map(({ port }) => port)).size, held.length)
    const { free_cids: free, next_cid: next } = (await store.numbers()).cids
    assert.equal(next - 3, held.length + free.length, 'none was lost')
  })
})

async function setNextPort({ root }: SandboxStore, next: number): Promise<void> {
  const database = await Database.open(path.join(root, 'bandsox.db'))
  await database.write((tables) => tables.change("UPDATE allocators SET next = $next WHERE name = 'port'", { next }))
  database.close()
}

async function fillPorts(store: SandboxStore): Promise<void> {
  const { id } = await start(store)
  await stop(store, { id })
  const database = await Database.open(path.join(store.root, 'bandsox.db'))
  await database.write((tables) => {
    const names = Object.keys(tables.row('SELECT * FROM sandboxes') ?? {}).filter(
      (name) => !/^(?:id|cid|port|state|image_digest|operation.*|holder)$/.test(name),
    )
    tables.change(
      `WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 999)
       INSERT INTO sandboxes (id, cid, port, state, ${names.join(', ')})
       SELECT printf('sbx_z%09d', i), 3 + i, 9000 + i, 'running', ${names.join(', ')} FROM n, sandboxes`,
    )
  })
  database.close()
}
