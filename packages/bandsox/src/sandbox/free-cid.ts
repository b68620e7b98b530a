/** Starts a machine on a CID that nobody on this host has. */
import { BandSoxError } from '@bandsox/sdk'
import type { Admission } from '../store/sandbox-store.js'
import type { Machine, MachineFacts, MachineSpec } from '../vmm/vmm.js'
import type { Host } from './host.js'

/**
 * The store's numbers speak for one storage folder, while the kernel's CIDs are the whole host's: other programs have some, and
 * so has another user's BandSox. Which they are, only a start tells; the next CID is tried then, so that none is tried twice.
 *
 * @param specOf The machine with these numbers.
 * @param start Boots it, or loads it.
 * @throws What `start` throws but `cid-in-use`; `host-resource` when no CID is left; what `admit` throws; `signal.reason`.
 */
export async function startOnFreeCid(
  host: Host,
  id: string,
  {
    specOf,
    start,
    admit,
    signal,
  }: {
    specOf: (numbers: { cid: number; port: number }) => Promise<MachineSpec>
    start: (spec: MachineSpec) => Promise<{ machine: Machine; facts: MachineFacts }>
    admit?: Admission
    signal?: AbortSignal | undefined
  },
): Promise<{ spec: MachineSpec; machine: Machine; facts: MachineFacts }> {
  let numbers = await host.store.takeNumbers(id, admit === undefined ? {} : { admit })
  for (;;) {
    const spec = await specOf(numbers)
    try {
      return { spec, ...(await start(spec)) }
    } catch (error) {
      if (!(error instanceof BandSoxError && error.code === 'cid-in-use')) throw error
      host.debug(error.message)
    }
    signal?.throwIfAborted()
    numbers = await host.store.takeNumbers(id, { above: numbers.cid })
  }
}
