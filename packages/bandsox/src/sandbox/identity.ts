/** What makes a machine this sandbox and no other: given to its guest at every start, whatever it was started from. */
import { createHash, randomBytes } from 'node:crypto'
import type { Agent } from '../guest/agent.js'
import type { Hello } from '../guest/connection.js'
import { type GuestIdentity, identifyGuest } from '../guest/identity.js'
import type { MachineRecord, SandboxRecord } from '../store/record.js'
import { agentOf } from './agent-of.js'
import type { Host } from './host.js'

/** The kernel's generator takes as much as it likes; its own state has 32 bytes (random(4)). */
const ENTROPY_BYTES = 64
const IDENTITY_TIMEOUT_MS = 30_000

/** @see systemd's machine-id(5): 32 hexadecimal digits, the same at every start, and no secret's part. */
const machineIdOf = (id: string): string =>
  createHash('sha256').update(`machine-id of ${id}`).digest('hex').slice(0, 32)

export const hostnameOf = ({ id, name }: Pick<SandboxRecord, 'id' | 'name'>): string => name ?? id.replace('_', '-')

const identityOf = (record: SandboxRecord, port: number): GuestIdentity => ({
  hostname: hostnameOf(record),
  machineId: machineIdOf(record.id),
  port,
  entropy: randomBytes(ENTROPY_BYTES),
  setsClock: true,
  env: {
    BANDSOX_SANDBOX_ID: record.id,
    BANDSOX_SANDBOX_NAME: record.name ?? '',
    BANDSOX_IMAGE: record.image.reference,
  },
})

/**
 * Tells the guest who it is, and lets its programs run.
 *
 * @param options.saved Of one that goes on from a state: the port that its agent listens on until now, and how long its hooks may take.
 * @returns The agent where it is from now on.
 * @throws what the agent throws; `options.signal`'s reason.
 */
export async function tellIdentity(
  host: Host,
  record: SandboxRecord,
  {
    facts,
    port,
    agent,
    hello,
    saved,
    signal,
  }: {
    facts: MachineRecord
    port: number
    agent: Agent
    hello: Hello
    saved?: { port: number; hooksMs: number }
    signal?: AbortSignal | undefined
  },
): Promise<Agent> {
  // An older one, of a snapshot: it is what it was made as.
  if (!hello.capabilities.includes('snapshot')) return agent
  const { failures } = await identifyGuest(
    agent,
    { ...identityOf(record, port), ...(saved !== undefined && { restored: true, hooksMs: saved.hooksMs }) },
    { timeoutMs: IDENTITY_TIMEOUT_MS, signal },
  )
  for (const failure of failures) host.warn(`sandbox ${record.id}: ${failure}`)
  if (saved === undefined || saved.port === port) return agent
  agent.close()
  return agentOf(host, { id: record.id, machine: facts, port })
}
