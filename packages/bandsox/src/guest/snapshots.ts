/** What an agent must know to take part in snapshots: PROTOCOL.md section 9. */
import { BandSoxError, printableLine } from '@bandsox/sdk'
import type { GuestConnection } from './connection.js'

const CAPABILITY = 'snapshot'

/** PROTOCOL.md section 9: what the guest's hooks may take together, when nobody says otherwise. */
export const HOOKS_MS = 10_000

/** How an operation of this kind is asked for. */
export interface AskOptions {
  /** How long the guest may take, besides what its hooks may take. */
  timeoutMs: number
  signal?: AbortSignal | undefined
}

/** Stages in ms, as the guest has measured them in µs. */
export const inMilliseconds = (stagesUs: Record<string, number>): Record<string, number> =>
  Object.fromEntries(Object.entries(stagesUs).map(([name, us]) => [name, us / 1000]))

/** @throws `agent-incompatible`. */
export function requireSnapshots({ hello }: GuestConnection): void {
  if (hello.capabilities.includes(CAPABILITY)) return
  throw new BandSoxError('agent-incompatible', `the agent ${printableLine(hello.agent)} takes no part in snapshots`, {
    hint: "the sandbox's agent is older than this bandsox: stop the sandbox and start it again",
  })
}
