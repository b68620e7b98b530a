/**
 * What a machine is given of a network, as one step of every start. There is no networking yet: the plan is empty, and what it would name
 * reaches the drivers already.
 */
import type { SandboxRecord } from '../store/record.js'

export interface NetworkPlan {
  /** Path of the network namespace that the VMM is to be in. */
  namespace: string | undefined
  /** TAPs in place of those that a loaded machine was saved with, by interface. */
  overrides: Record<string, string>
  /** Gives back what was made for it. */
  release: () => Promise<void>
}

/** @param _record Of the sandbox, which has its numbers by then. */
export async function planNetwork(_record: Pick<SandboxRecord, 'id'>): Promise<NetworkPlan> {
  return { namespace: undefined, overrides: {}, release: async () => undefined }
}
