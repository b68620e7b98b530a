/** Waits for a state of a sandbox, whoever brings it about. */
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, type SandboxState, type StateName, stateNames } from '@bandsox/sdk'
import type { Host } from './host.js'
import { settle } from './settle.js'

/** Nobody announces a VMM's end to everybody: it is looked for. */
const POLL_MS = 100

/** @throws as `Sandbox.waitFor`. */
export async function waitForState(
  host: Host,
  id: string,
  states: readonly StateName[],
  { timeoutMs, signal }: { timeoutMs?: number; signal?: AbortSignal },
): Promise<SandboxState> {
  for (const state of states) requireState(state)
  const deadline = timeoutMs === undefined ? Number.POSITIVE_INFINITY : performance.now() + timeoutMs
  const wanted = states.join(' or ')
  for (;;) {
    signal?.throwIfAborted()
    const record = await host.store.read(id)
    const settled = record && (await settle(host, record))
    if (settled === undefined)
      throw new BandSoxError('not-found', `sandbox ${id} is gone: it will not be ${wanted} any more`)
    const { state, operation } = settled
    if (states.includes(state.kind)) return state
    if (state.kind === 'failed' && operation === undefined)
      throw new BandSoxError(
        'wrong-state',
        `sandbox ${id} has failed (${state.reason}): it does not get ${wanted} by itself`,
        {
          hint: `see what it printed: bandsox logs ${id}; start it again: bandsox vm start ${id}`,
        },
      )
    if (performance.now() >= deadline)
      throw new BandSoxError('timeout', `sandbox ${id} is ${state.kind} and not ${wanted} after ${timeoutMs} ms`)
    const pauseMs = Math.min(POLL_MS, Math.max(1, deadline - performance.now()))
    await delay(pauseMs, undefined, signal === undefined ? {} : { signal }).catch(() => signal?.throwIfAborted())
  }
}

function requireState(name: string): void {
  if (!stateNames.some((state) => state === name))
    throw new BandSoxError(
      'bad-request',
      `there is no state ${JSON.stringify(name)}; there are: ${stateNames.join(', ')}`,
    )
}
