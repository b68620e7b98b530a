import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { BandSoxError } from '@bandsox/sdk'
import { hasCode } from '../testing/errors.js'
import { sampleRecord } from '../testing/sample-record.js'
import type { TestScope } from '../testing/temporary-folder.js'
import { testHost } from '../testing/test-host.js'
import { defaultLimits } from '../vmm/limits.js'
import type { Machine, MachineFacts, MachineSpec, Vmm } from '../vmm/vmm.js'
import { startOnFreeCid } from './free-cid.js'
import { type Host, machineFiles } from './host.js'

const facts: MachineFacts = {
  vmm: 'fake',
  version: '1',
  accelerator: 'kvm',
  vsock: { backend: 'kernel', socket: 'vsock.sock' },
}
const machine: Machine = {
  powerOffMode: 'poweroff',
  pause: () => Promise.resolve(),
  resume: () => Promise.resolve(),
  powerDown: () => Promise.resolve(),
  setLimits: () => Promise.resolve(),
  setMemory: () => Promise.resolve(0),
  metrics: () => Promise.resolve(undefined),
  detachVsock: () => Promise.resolve(false),
  attachVsock: () => Promise.resolve(),
  saveState: () => Promise.reject(new Error('it cannot')),
  signal: () => Promise.resolve(),
  exited: () => Promise.resolve({ code: 0, at: '' }),
  exitedWithin: () => Promise.resolve(undefined),
  close: () => undefined,
}

/** A sandbox that is just made on a host where others have `inUse`. */
async function sandboxBeside(t: TestScope, inUse: readonly number[], fails?: Error) {
  const tried: number[] = []
  const vmm: Vmm = {
    start: async ({ cid }) => {
      tried.push(cid)
      if (inUse.includes(cid)) throw new BandSoxError('cid-in-use', `CID ${cid} is in use`)
      if (fails !== undefined) throw fails
      return { machine, facts }
    },
    load: () => Promise.reject(new Error('it cannot')),
    mergeState: () => Promise.reject(new Error('it cannot')),
    makeLayer: () => Promise.reject(new Error('it cannot')),
    checkLayer: () => Promise.reject(new Error('it cannot')),
    capabilities: () => Promise.reject(new Error('it has none')),
    fingerprint: () => Promise.reject(new Error('it has none')),
    program: () => Promise.reject(new Error('it has none')),
    attach: () => Promise.resolve(machine),
    links: () => [],
    clear: () => Promise.resolve(),
  }
  const host = await testHost(t, { vmm, shimPath: '/no/shim' })
  const { record } = await host.store.insert(sampleRecord({ state: { kind: 'creating', since: '' } }))
  const specOf = async ({ cid, port }: { cid: number; port: number }): Promise<MachineSpec> => ({
    ...{ sandboxId: record.id, directory: host.store.directoryOf(record.id), vcpu: 1, memoryMib: 128 },
    ...{ files: machineFiles, hostname: 'box', vsock: 'auto', cid, port, uid: 1_900_000_000 + cid },
    limits: defaultLimits,
  })
  return { host, id: record.id, specOf, start: vmm.start, tried }
}

const held = async ({ store }: Host) => (await store.list()).map(({ cid, port }) => [cid, port])

describe('starting on a free CID', () => {
  it('takes the first where nobody else has it', async (t) => {
    const { host, id, specOf, start, tried } = await sandboxBeside(t, [])
    assert.equal((await startOnFreeCid(host, id, { specOf, start })).spec.cid, 3)
    assert.deepEqual([tried, await held(host)], [[3], [[3, 9000]]])
  })

  it('passes over those that others of this host have, and holds, records and starts the same one', async (t) => {
    const { host, id, specOf, start, tried } = await sandboxBeside(t, [3, 4, 6])
    const { spec } = await startOnFreeCid(host, id, { specOf, start })
    assert.deepEqual([spec.cid, spec.uid, spec.port], [5, 1_900_000_005, 9000])
    assert.deepEqual([tried, await held(host)], [[3, 4, 5], [[5, 9000]]])
  })

  it('does not take any other failure for it', async (t) => {
    const { host, id, specOf, start, tried } = await sandboxBeside(t, [3], new BandSoxError('vmm-failed', 'no'))
    await assert.rejects(startOnFreeCid(host, id, { specOf, start }), hasCode('vmm-failed', /^no$/))
    assert.deepEqual([tried, await held(host)], [[3, 4], [[4, 9000]]])
  })

  it('stops between two tries when asked to', async (t) => {
    const { host, id, specOf, start, tried } = await sandboxBeside(t, [3])
    const signal = AbortSignal.abort(new Error('enough'))
    await assert.rejects(startOnFreeCid(host, id, { specOf, start, signal }), /enough/)
    assert.deepEqual([tried, await held(host)], [[3], [[3, 9000]]])
  })
})
