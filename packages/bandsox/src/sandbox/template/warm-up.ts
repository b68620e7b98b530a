/** Has a guest do once what each command needs of it: its first takes ten times as long as its second. */
import type { Agent } from '../../guest/agent.js'
import { GuestFault } from '../../guest/guest-fault.js'
import { startJob } from '../../guest/job.js'

const PROGRAM = ['/bin/true']

/** An image need not have it: whatever the guest says of it, the agent has done what it does for a command. @throws What the link throws. */
export async function warmUp(agent: Agent, signal: AbortSignal | undefined): Promise<void> {
  const job = startJob(async () => agent, { argv: PROGRAM }, signal === undefined ? {} : { signal })
  await job.wait().catch((error: unknown) => {
    if (!(error instanceof GuestFault)) throw error
  })
}
