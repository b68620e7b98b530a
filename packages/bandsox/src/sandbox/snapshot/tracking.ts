/** What a sandbox has changed of its memory since a state of it was saved, where its VMM keeps account of that. */
import { BandSoxError } from '@bandsox/sdk'
import type { SandboxRecord } from '../../store/record.js'
import type { Machine, MachineState, StateKind } from '../../vmm/vmm.js'
import type { Host } from '../host.js'

/** @throws `host-unsupported` where it is asked for, and the VMM of new machines cannot. */
export async function requireTracking(host: Host, isWanted: boolean | undefined, option: string): Promise<void> {
  if (isWanted !== true || (await host.vmm.capabilities()).states.includes('diff')) return
  throw new BandSoxError(
    'host-unsupported',
    "cannot follow what changes in a sandbox: this host's VMM saves whole states only",
    {
      hint: `do without ${option}, or let Firecracker run it: docs/firecracker.md`,
    },
  )
}

/** @returns Id of the snapshot that the next one can hold the changes since. @throws `wrong-state`. */
export function requireBase({ id, machine }: Pick<SandboxRecord, 'id' | 'machine'>): string {
  if (machine?.tracksChanges !== true)
    throw new BandSoxError(
      'wrong-state',
      `cannot tell what has changed in sandbox ${id}: its changes are not followed`,
      {
        hint: 'have them followed from the start: --track-changes of create, or of snapshot restore',
      },
    )
  if (machine.lastState !== undefined) return machine.lastState
  throw new BandSoxError('wrong-state', `sandbox ${id} has no snapshot that this one could hold the changes since`, {
    hint: 'take a whole one first, without --diff',
  })
}

/**
 * With each state that it saves, of whatever kind and for whatever purpose, a VMM begins its account anew. So from before that moment on there
 * is no snapshot to hold the changes since, until the caller has written down that this one is kept.
 *
 * @throws as `Machine.saveState`.
 */
export async function saveTracked(
  host: Host,
  { id, machine: facts }: Pick<SandboxRecord, 'id' | 'machine'>,
  machine: Machine,
  folder: string,
  kind: StateKind,
  signal?: AbortSignal,
): Promise<MachineState> {
  if (facts?.tracksChanges === true)
    await host.store.describe(id, ({ machine: now }) => ({ machine: now && { ...now, lastState: undefined } }))
  return await machine.saveState(folder, kind, signal)
}
