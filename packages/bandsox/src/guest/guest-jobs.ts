/** The guest's commands that have a name: PROTOCOL.md section 9. */
import type { ToHost } from '../wire/message.js'
import type { Agent } from './agent.js'
import type { GuestConnection } from './connection.js'
import { type AskOptions, requireSnapshots } from './snapshots.js'

/** `from` and `to` are offsets of the output that the guest has kept; `startedMs` is since the guest's boot. */
export type GuestJobEntry = Extract<ToHost, { type: 'jobs' }>['jobs'][number]

/** Those that run first, then those that ended lately; at most 256. @throws `agent-incompatible`, and the failures of the link. */
export async function listGuestJobs(agent: Agent, options: AskOptions): Promise<readonly GuestJobEntry[]> {
  const { timeoutMs, signal } = options
  const asked = {
    async run(connection: GuestConnection) {
      requireSnapshots(connection)
      connection.send({ type: 'jobs' })
      return (await connection.receiveMessage('jobs', { signal, timeoutMs, about: 'list its commands' })).jobs
    },
    canGoOn: () => true,
    progress: () => 0,
  }
  return await agent.useUntilDone(asked, { signal })
}
