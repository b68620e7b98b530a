import assert from 'node:assert/strict'
import path from 'node:path'
import { describe, it } from 'node:test'
import { BandSoxError } from '@bandsox/sdk'
import { cidPool } from '../store/lease.js'
import type { SandboxRecord } from '../store/record.js'
import { SandboxStore } from '../store/sandbox-store.js'
import { hasCode } from '../testing/errors.js'
import { noImages } from '../testing/no-images.js'
import { sampleRecord } from '../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { defaultLimits } from '../vmm/limits.js'
import type { Machine, MachineFacts, MachineSpec } from '../vmm/vmm.js'
import { type Start, startOnFreeCid } from './free-cid.js'
import { type Host, machineFiles } from './host.js'

const facts: MachineFacts = {
  vmm: 'fake',
  version: '1',
  accelerator: 'kvm',
  vsock: { backend: 'kernel', socket: 'vsock.sock' },
}
const machine: Machine = {
  pause: () => Promise.resolve(),
  resume: () => Promise.resolve(),
  powerDown: () => Promise.resolve(),
  setLimits: () => Promise.resolve(),
  setMemory: () => Promise.resolve(0),
  signal: () => Promise.resolve(),
  exited: () => Promise.resolve({ code: 0, at: '' }),
  exitedWithin: () => Promise.resolve(undefined),
  close: () => undefined,
}

/** A sandbox with CID 3 on a host where others have `inUse`. */
async function sandboxBeside(t: TestScope, inUse: readonly number[], fails?: Error) {
  const store = new SandboxStore(path.join(await temporaryFolder(t), 'storage'))
  await store.open()
  const tried: number[] = []
  const host: Host = {
    store,
    images: noImages(),
    shimPath: '/no/shim',
    vmm: {
      name: 'fake',
      start: async ({ cid }) => {
        tried.push(cid)
        if (inUse.includes(cid)) throw new BandSoxError('cid-in-use', `CID ${cid} is in use`)
        if (fails !== undefined) throw fails
        return { machine, facts }
      },
      attach: () => Promise.resolve(machine),
      links: () => [],
    },
    debug: () => undefined,
    warn: () => undefined,
  }
  const record = sampleRecord({ cid: await store.leases.take(cidPool, sampleRecord({}).id), port: 9_000 })
  await (await store.makeDirectory(record.id))()
  await store.write(record)
  const kept = { record }
  const start: Start = {
    specOf: async ({ cid }): Promise<MachineSpec> => ({
      sandboxId: record.id,
      directory: store.directoryOf(record.id),
      vcpu: 1,
      memoryMib: 128,
      files: machineFiles,
      hostname: 'box',
      vsock: 'auto',
      cid: cid ?? 0,
      port: 9_000,
      uid: 1_900_000_000 + (cid ?? 0),
      limits: defaultLimits,
    }),
    onChange: (changed: SandboxRecord) => {
      kept.record = changed
    },
    signal: undefined,
  }
  return { host, record, start, tried, kept }
}

const held = async ({ store }: Host) => (await store.leases.list(cidPool)).map(({ number }) => number)

describe('starting on a free CID', () => {
  it('takes the first where nobody else has it', async (t) => {
    const { host, record, start, tried, kept } = await sandboxBeside(t, [])
    assert.equal((await startOnFreeCid(host, record, start)).spec.cid, 3)
    assert.deepEqual([tried, kept.record.cid, await held(host)], [[3], 3, [3]])
  })

  it('passes over those that others of this host have, and holds, records and starts the same one', async (t) => {
    const { host, record, start, tried, kept } = await sandboxBeside(t, [3, 4, 6])
    const { spec } = await startOnFreeCid(host, record, start)
    assert.deepEqual([spec.cid, spec.uid], [5, 1_900_000_005])
    assert.deepEqual([tried, kept.record.cid, await held(host)], [[3, 4, 5], 5, [5]])
    assert.deepEqual(await host.store.read(record.id), kept.record)
  })

  it('does not take any other failure for it, and has told which CID is held by then', async (t) => {
    const { host, record, start, tried, kept } = await sandboxBeside(t, [3], new BandSoxError('vmm-failed', 'no'))
    await assert.rejects(startOnFreeCid(host, record, start), hasCode('vmm-failed', /^no$/))
    assert.deepEqual([tried, kept.record.cid, await held(host)], [[3, 4], 4, [4]])
  })

  it('stops between two tries when asked to', async (t) => {
    const { host, record, start, tried } = await sandboxBeside(t, [3])
    const signal = AbortSignal.abort(new Error('enough'))
    await assert.rejects(startOnFreeCid(host, record, { ...start, signal }), /enough/)
    assert.deepEqual([tried, await held(host)], [[3], [3]])
  })
})
