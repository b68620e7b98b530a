import assert from 'node:assert/strict'
import path from 'node:path'
import { describe, it } from 'node:test'
import { identifySelf } from '../process/identity.js'
import { hasCode } from '../testing/errors.js'
import { sampleRecord } from '../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { Database } from './database.js'
import type { PoolOptions } from './pool-store.js'
import { newSandboxId, SandboxStore } from './sandbox-store.js'

const options: PoolOptions = { vcpu: 1, memoryMib: 256, diskMib: 4_096, vsock: 'auto' }
const wanted = { image: 'alpine', size: 3, options, maxAgeMs: 60_000 }
const taker = (name?: string) => ({
  ...{ name, env: { A: '1' }, labels: { of: 'taker' }, metadata: {}, createdAt: new Date().toISOString() },
  limits: { cpus: null, diskBytesPerSecond: null, diskOperationsPerSecond: null },
})

async function storeIn(t: TestScope): Promise<SandboxStore> {
  const store = await SandboxStore.open(path.join(await temporaryFolder(t), 'storage'))
  t.after(() => store.close())
  return store
}

/** One that waits; still at being made without `release`. */
async function member(store: SandboxStore, pool: string, { isMaking = false } = {}): Promise<string> {
  const since = new Date().toISOString()
  const claim = await store.insert(sampleRecord({ id: newSandboxId(), pool, state: { kind: 'creating', since } }))
  if (isMaking) return claim.record.id
  await store.takeNumbers(claim.record.id)
  await store.transition(claim.record.id, { state: { kind: 'paused', since } })
  await claim.release()
  return claim.record.id
}

describe('a pool', () => {
  it('is one for each image and shape, and changes in place', async (t) => {
    const { pools } = await storeIn(t)
    const first = await pools.set(wanted)
    await pools.failed(first.id, 'no memory')
    assert.equal((await pools.read(first.id))?.failure, 'no memory')
    const changed = await pools.set({ ...wanted, size: 5 })
    assert.deepEqual([changed.id, changed.size, changed.failure], [first.id, 5, undefined])
    const other = await pools.set({ ...wanted, options: { ...options, memoryMib: 512 } })
    const debian = await pools.set({ ...wanted, image: 'debian' })
    assert.deepEqual(new Set((await pools.list()).map(({ id }) => id)), new Set([first.id, other.id, debian.id]))
    assert.equal((await pools.find('alpine', { ...options, memoryMib: 512 }))?.id, other.id)
    assert.equal(await pools.find('alpine', { ...options, vsock: 'off' }), undefined)
    assert.equal(await pools.find('Alpine', options), undefined)
    await pools.remove(other.id)
    assert.equal(await pools.read(other.id), undefined)
  })

  it('gives each that waits to one taker, the oldest first, and none that is being made', async (t) => {
    const store = await storeIn(t)
    const { id } = await store.pools.set(wanted)
    const members = [await member(store, id), await member(store, id), await member(store, id)]
    await member(store, id, { isMaking: true })
    await member(store, 'pool_aaaaaaaaaa')
    assert.deepEqual(await store.pools.counts(id), { ready: 3, making: 1 })
    const claims = await Promise.all(Array.from({ length: 8 }, () => store.takeFromPool(id, taker())))
    const taken = claims.flatMap((claim) => (claim === undefined ? [] : [claim.record]))
    assert.deepEqual(new Set(taken.map((record) => record.id)), new Set(members))
    for (const { pool, env, labels, operation } of taken)
      assert.deepEqual([pool, env, labels, operation?.name], [undefined, { A: '1' }, { of: 'taker' }, 'create'])
    assert.deepEqual(await store.pools.counts(id), { ready: 0, making: 1 })
  })

  it('keeps what it has from who wants a name that is taken', async (t) => {
    const store = await storeIn(t)
    const { id } = await store.pools.set(wanted)
    await member(store, id)
    await (await store.insert(sampleRecord({ name: 'taken' }))).release()
    await assert.rejects(store.takeFromPool(id, taker('taken'), { unique: true }), hasCode('name-taken'))
    assert.deepEqual(await store.pools.counts(id), { ready: 1, making: 0 })
    assert.equal((await store.takeFromPool(id, taker('free'), { unique: true }))?.record.name, 'free')
  })

  it('is filled by one process at a time, and by the next when that has died', async (t) => {
    const store = await storeIn(t)
    const { id } = await store.pools.set(wanted)
    assert.equal(await store.pools.holdForFilling('pool_aaaaaaaaaa'), undefined)
    const holds = await Promise.all([1, 2, 3].map(() => store.pools.holdForFilling(id)))
    const [release, ...others] = holds.filter((each) => each !== undefined)
    assert.ok(release)
    assert.deepEqual(others, [])
    await release()
    assert.ok(await store.pools.holdForFilling(id))
    const database = await Database.open(path.join(store.root, 'bandsox.db'))
    t.after(() => database.close())
    const dead = JSON.stringify({ ...(await identifySelf()), startTime: 1 })
    await database.write((tables) => tables.change('UPDATE pools SET holder = $dead WHERE id = $id', { id, dead }))
    await release() // of the one before: it has nothing to release any more
    assert.equal(JSON.stringify((await store.pools.read(id))?.holder), dead)
    assert.ok(await store.pools.holdForFilling(id))
  })
})
