/** Ends a running VM as gently as it lets us: the agent, the power button, SIGTERM, SIGKILL; each step is bounded. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import type { VmmExit } from '../process/shim.js'
import type { Machine } from '../vmm/vmm.js'

/** Given to processes in the guest between SIGTERM and SIGKILL. */
const GUEST_GRACE_MS = 2_000
/** From the agent's word to the VMM's end: grace, sync and the guest kernel's power-off. */
const AGENT_STOP_MS = 10_000
const POWER_BUTTON_MS = 5_000
/** Of one whose first stop was interrupted: whoever comes next waits for it. */
const SECOND_STOP_MS = 3_000
const SIGTERM_MS = 2_000
const SIGKILL_MS = 10_000

/**
 * @param options.debug Told why a gentler step did not do.
 * @param options.hasBeenAsked It was told to stop before: it is given less time to do so.
 * @param options.signal Ends the waiting, and so the escalation; what was asked of the guest goes on.
 * @throws `vmm-failed` when even SIGKILL did not help; `signal.reason`.
 */
export async function stopMachine(
  machine: Machine,
  agent: Agent,
  options: { debug: (message: string) => void; signal?: AbortSignal | undefined; hasBeenAsked?: boolean },
): Promise<VmmExit> {
  const gentle = [
    { name: 'the agent', ask: () => askAgent(agent, machine, AGENT_STOP_MS), waitMs: AGENT_STOP_MS },
    { name: 'the power button', ask: () => machine.powerDown(), waitMs: POWER_BUTTON_MS },
  ]
  const again = [{ name: 'the agent', ask: () => askAgent(agent, machine, SECOND_STOP_MS), waitMs: SECOND_STOP_MS }]
  const steps: { name: string; ask: () => Promise<void>; waitMs: number }[] = [
    ...(options.hasBeenAsked === true ? again : gentle),
    { name: 'SIGTERM', ask: () => machine.signal('SIGTERM'), waitMs: SIGTERM_MS },
    { name: 'SIGKILL', ask: () => machine.signal('SIGKILL'), waitMs: SIGKILL_MS },
  ]
  for (const { name, ask, waitMs } of steps) {
    options.signal?.throwIfAborted()
    try {
      await ask()
    } catch (error) {
      options.debug(`stop by ${name} failed: ${messageOf(error)}`)
      // It may have failed because the VMM had just ended: a short look settles that before the harsher step.
      const exit = await machine.exitedWithin(100)
      if (exit !== undefined) return exit
      continue
    }
    const exit = await orAborted(machine.exitedWithin(waitMs), options.signal)
    if (exit !== undefined) return exit
    options.debug(`stop by ${name}: no end within ${waitMs} ms`)
  }
  throw new BandSoxError('vmm-failed', `the VMM did not end within ${SIGKILL_MS} ms of SIGKILL`, {
    hint: 'it hangs in the host kernel: see dmesg',
  })
}

async function orAborted<T>(wait: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return await wait
  let abort: () => void = () => undefined
  const aborted = new Promise<never>((_, reject) => {
    abort = () => reject(signal.reason)
    signal.addEventListener('abort', abort, { once: true })
  })
  try {
    return await Promise.race([wait, aborted])
  } finally {
    signal.removeEventListener('abort', abort)
  }
}

async function askAgent(agent: Agent, { powerOffMode }: Machine, timeoutMs: number): Promise<void> {
  const connection = await agent.acquire({ signal: AbortSignal.timeout(timeoutMs) })
  try {
    connection.send({ type: 'shutdown', mode: powerOffMode, graceMs: GUEST_GRACE_MS })
    await connection.receiveMessage('stopping', { about: 'power the guest off', timeoutMs })
  } finally {
    agent.discard(connection)
  }
}
