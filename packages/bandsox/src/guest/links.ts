/** How the guest sees its links to the host: PROTOCOL.md section 8. */
import { BandSoxError, printableLine } from '@bandsox/sdk'
import type { ToHost } from '../wire/message.js'
import type { Agent } from './agent.js'

const CAPABILITY = 'links'

export type GuestLinks = Omit<Extract<ToHost, { type: 'links' }>, 'type'>

/** @throws `agent-incompatible`, and the failures of the link. */
export async function askLinks(agent: Agent, signal?: AbortSignal): Promise<GuestLinks> {
  return await agent.use(async (connection) => {
    const { capabilities, agent: version } = connection.hello
    if (!capabilities.includes(CAPABILITY))
      throw new BandSoxError(
        'agent-incompatible',
        `the agent ${printableLine(version)} does not say what it sees of its links`,
      )
    connection.send({ type: 'links' })
    const { vsock, serial } = await connection.receiveMessage('links', { signal, about: 'ask for its links' })
    return { vsock, serial }
  }, signal)
}
