/** Starts a machine on a CID that nobody on this host has. */
import { BandSoxError } from '@bandsox/sdk'
import { cidPool } from '../store/lease.js'
import type { SandboxRecord } from '../store/record.js'
import type { Machine, MachineFacts, MachineSpec } from '../vmm/vmm.js'
import type { Host } from './host.js'

export interface Start {
  /** The machine of a record that has its numbers. */
  specOf: (record: SandboxRecord) => Promise<MachineSpec>
  /** Told of each record with another CID. */
  onChange: (record: SandboxRecord) => void
  signal: AbortSignal | undefined
}

/**
 * Leases speak for one storage folder, while the kernel's CIDs are the whole host's: other programs have some, and so has another
 * user's BandSox. Which they are, only a start tells; the next CID is tried then.
 *
 * @throws What `Vmm.start` throws but `cid-in-use`; `host-resource` when no CID is left; `signal.reason`.
 */
export async function startOnFreeCid(
  host: Host,
  record: SandboxRecord,
  { specOf, onChange, signal }: Start,
): Promise<{ spec: MachineSpec; machine: Machine; facts: MachineFacts }> {
  for (let current = record; ; onChange(current)) {
    const spec = await specOf(current)
    try {
      return { spec, ...(await host.vmm.start(spec)) }
    } catch (error) {
      if (!(error instanceof BandSoxError && error.code === 'cid-in-use')) throw error
      host.debug(error.message)
    }
    signal?.throwIfAborted()
    current = await takeCidAfter(host, current, spec.cid)
  }
}

/** Gives the refused CID back, and takes one above it, so that none is tried twice. */
async function takeCidAfter(host: Host, before: SandboxRecord, refused: number): Promise<SandboxRecord> {
  await host.store.leases.release(cidPool, refused, before.id)
  const cid = await host.store.leases.take({ ...cidPool, from: refused + 1 }, before.id)
  host.debug(`Allocated CID: ${cid}`)
  const record = { ...before, cid }
  await host.store.write(record)
  return record
}
