/**
 * All processes of the guest standing still, while its state is saved: PROTOCOL.md section 9. Who asks for it holds the operation on the
 * sandbox that everybody else waits for.
 */
import type { Agent } from './agent.js'
import type { GuestConnection } from './connection.js'
import { type AskOptions, HOOKS_MS, inMilliseconds, requireSnapshots } from './snapshots.js'

export interface FrozenGuest {
  /** How many stand still. */
  processes: number
  /** ms of `hooks`, `flush` (of the disks, while all still run), `freeze` and `sync`; empty when it was frozen already. */
  stages: Record<string, number>
  /** What does not stand still, and why. */
  warnings: readonly string[]
}

/**
 * Runs the guest's hooks for snapshots, makes its processes stand still and writes to its disks what waits to be written. Once more renews the
 * lease.
 *
 * @param options.hooksMs What the hooks may take together. Default 10 000.
 * @param options.leaseMs After this long, in the guest's time, they go on by themselves. Default 60 000.
 * @throws `hook-failed`, with nothing changed; `agent-incompatible`, and the failures of the link.
 */
export async function freezeGuest(
  agent: Agent,
  options: AskOptions & { hooksMs?: number; leaseMs?: number },
): Promise<FrozenGuest> {
  const { hooksMs = HOOKS_MS, leaseMs, timeoutMs, signal } = options
  const asked = {
    async run(connection: GuestConnection) {
      requireSnapshots(connection)
      connection.send({ type: 'freeze', hooksMs, ...(leaseMs !== undefined && { leaseMs }) })
      const { processes, stagesUs, warnings } = await connection.receiveMessage('frozen', {
        signal,
        timeoutMs: timeoutMs + hooksMs,
        about: 'freeze it',
      })
      return { processes, stages: inMilliseconds(stagesUs), warnings }
    },
    canGoOn: () => true, // what is frozen already is not frozen twice
    progress: () => 0,
  }
  return await agent.useUntilDone(asked, { signal, recovers: false })
}

/** Lets the processes go on; harmless when they do. @throws `agent-incompatible`, and the failures of the link. */
export async function thawGuest(agent: Agent, options: AskOptions): Promise<void> {
  const { timeoutMs, signal } = options
  const asked = {
    async run(connection: GuestConnection) {
      requireSnapshots(connection)
      connection.send({ type: 'thaw' })
      await connection.receiveMessage('thawed', { signal, timeoutMs, about: 'let it go on' })
    },
    canGoOn: () => true,
    progress: () => 0,
  }
  await agent.useUntilDone(asked, { signal, recovers: false })
}
