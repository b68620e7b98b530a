/** Telling a machine who it is, before anything in it goes on: PROTOCOL.md section 9. */
import type { Agent } from './agent.js'
import { commonMoment } from './moment.js'
import { type AskOptions, HOOKS_MS, inMilliseconds, requireSnapshots } from './snapshots.js'

export interface GuestIdentity {
  hostname?: string
  /** 32 hexadecimal digits. */
  machineId?: string
  /** The vsock port that the agent is to listen on from now on, in place of the one before. */
  port?: number
  /** 16 to 512 bytes for the guest's random generator. */
  entropy?: Buffer
  /** Gives the guest the host's time. Default false. */
  setsClock?: boolean
  /** `BANDSOX_…` variables of every later command, in place of those before. */
  env?: Record<string, string>
  /** The machine was started from a saved state: its commands go on without their former host, and its hooks for a restore are run. */
  restored?: boolean
  /** What those may take together. Default 10 000. */
  hooksMs?: number
}

export interface IdentifiedGuest {
  /** ms of each step. */
  stages: Record<string, number>
  /** What could not be done, and hooks that failed; all the rest was done. */
  failures: readonly string[]
  /** The port listened on, 0 where nobody listens by a port. */
  port: number
}

/**
 * Asked once, as hooks may not bear a second run: a caller whose link breaks may ask again.
 *
 * @throws `agent-incompatible`, and the failures of the link.
 */
export async function identifyGuest(
  agent: Agent,
  identity: GuestIdentity,
  { timeoutMs, signal }: AskOptions,
): Promise<IdentifiedGuest> {
  const { entropy, setsClock = false, hooksMs = HOOKS_MS, ...same } = identity
  return await agent.use(
    async (connection) => {
      requireSnapshots(connection)
      const moment = setsClock ? await commonMoment(connection, { timeoutMs, signal }) : undefined
      connection.send({
        type: 'identify',
        ...same,
        hooksMs,
        ...(entropy !== undefined && { entropy: entropy.toString('base64') }),
        ...(moment !== undefined && { timeUs: moment.timeUs, uptimeMs: moment.uptimeMs }),
      })
      const { stagesUs, failures, port } = await connection.receiveMessage('identified', {
        signal,
        timeoutMs: timeoutMs + (identity.restored ? hooksMs : 0),
        about: 'tell it who it is',
      })
      return { stages: inMilliseconds(stagesUs), failures, port }
    },
    { signal },
  )
}
