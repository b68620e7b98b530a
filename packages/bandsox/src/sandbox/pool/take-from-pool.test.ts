/** What becomes of a sandbox that is taken out of a pool, and of one that cannot be had. The machine is a stand-in for its VMM's. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { BandSoxError } from '@bandsox/sdk'
import { sampleRecord } from '../../testing/sample-record.js'
import type { TestScope } from '../../testing/temporary-folder.js'
import { type TestHost, testHost } from '../../testing/test-host.js'
import { qemuDriver } from '../../vmm/qemu/qemu.js'
import type { Machine } from '../../vmm/vmm.js'
import type { NewSandbox } from '../create.js'
import type { Host } from '../host.js'
import { stateNow } from '../settle.js'
import { stageClock } from '../stage-clock.js'
import { findPool, takeFromPool } from './take-from-pool.js'

const { image, vcpu, memoryMib, diskMib, vsock, limits } = sampleRecord()
const shape = { vcpu, memoryMib, diskMib, vsock }
const facts = { vmm: 'qemu', version: '7.2', accelerator: 'tcg', vsock: null } as const

/** A host whose machines do nothing but tell what is asked of them. */
async function hostWith(t: TestScope, machine: Partial<Machine>): Promise<TestHost> {
  const attached = { close: () => undefined, setLimits: async () => undefined, ...machine } as Machine
  const vmm = { ...qemuDriver({ shim: '/bin/false', searchPath: [] }), attach: async () => attached }
  return await testHost(t, { shimPath: '/bin/false', vmm })
}

/** A sandbox that waits in the pool of its image. */
async function waiting(host: TestHost): Promise<string> {
  const pool = await host.store.pools.set({ image: image.reference, size: 1, maxAgeMs: 60_000, options: shape })
  const claim = await host.store.insert(sampleRecord({ state: stateNow('creating') }), { operation: 'pool' })
  const { id } = claim.record
  await host.store.makeDirectory(id)
  await host.store.takeNumbers(id)
  await host.store.transition(id, { state: stateNow('paused'), machine: facts })
  await host.store.putIntoPool(id, pool.id)
  await claim.release()
  return id
}

const wanted = (over: Partial<NewSandbox['record']> = {}): NewSandbox => ({
  ...{ record: sampleRecord({ id: 'sbx_bbbbbbbbbb', ...over }), unique: false, bootTimeoutMs: 1_000 },
})

const take = async (...[host, sandbox, options]: [Host, NewSandbox, Parameters<typeof takeFromPool>[3]]) => {
  const pool = await findPool(host, sandbox)
  return pool && (await takeFromPool(host, pool, sandbox, options))
}

describe('a sandbox that is taken out of a pool', () => {
  it('is gone when who takes it gives up in the middle', async (t) => {
    const enough = new AbortController()
    const host = await hostWith(t, { resume: async () => enough.abort(new BandSoxError('cancelled', 'enough')) })
    await waiting(host)
    const taking = take(host, wanted(), { clock: stageClock(), signal: enough.signal })
    await assert.rejects(taking, (error) => error === enough.signal.reason)
    assert.deepEqual(await host.store.list(), [])
  })

  it('gets the limits that it did not have, also those that are usual where it is taken', async (t) => {
    const told: unknown[] = []
    const cannot = async () => {
      throw new BandSoxError('vmm-control', 'it is not there')
    }
    const host = await hostWith(t, { setLimits: async (given) => void told.push(given), resume: cannot })
    const usual = { ...limits, diskOperationsPerSecond: 100 }
    const there = { ...host, defaultLimits: usual }
    await waiting(host)
    const options = { clock: stageClock(), signal: undefined }
    assert.equal(await take(there, wanted({ limits: usual }), options), undefined)
    assert.deepEqual(told, [usual])
    assert.deepEqual(await host.store.list(), [], 'of no use, and gone')
  })

  it('is left to the next command when it cannot be removed, and the next one is tried', async (t) => {
    const cannot = async () => {
      throw new BandSoxError('vmm-control', 'it is not there')
    }
    const host = await hostWith(t, { resume: cannot })
    const id = await waiting(host)
    host.store.remove = async () => {
      throw new Error('it cannot be removed')
    }
    assert.equal(await take(host, wanted(), { clock: stageClock(), signal: undefined }), undefined)
    assert.equal((await host.store.read(id))?.operation?.holder.bootId, 'gone', 'nobody holds it any more')
  })
})
