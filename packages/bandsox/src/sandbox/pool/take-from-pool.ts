/** Gives somebody a sandbox that waits in a pool. */

import { isDeepStrictEqual } from 'node:util'
import { messageOf } from '@bandsox/sdk'
import type { Agent } from '../../guest/agent.js'
import type { PoolRecord } from '../../store/pool-store.js'
import type { SandboxRecord } from '../../store/record.js'
import { agentOf } from '../agent-of.js'
import type { NewSandbox } from '../create.js'
import type { Host } from '../host.js'
import { tellIdentity } from '../identity.js'
import { destroyClaimed, stateNow } from '../settle.js'
import { DEFAULT_HOOKS_MS } from '../snapshot/standstill.js'
import type { StageClock } from '../stage-clock.js'

/** The pool whose sandboxes are what is wanted. */
export async function findPool(host: Host, { record }: NewSandbox): Promise<PoolRecord | undefined> {
  const { vcpu, memoryMib, diskMib, vsock, image } = record
  return await host.store.pools.find(image.reference, { vcpu, memoryMib, diskMib, vsock })
}

/** @returns undefined when none waits in it. @throws `name-taken`; `signal.reason`. */
export async function takeFromPool(
  host: Host,
  pool: PoolRecord,
  { record: wanted, unique }: NewSandbox,
  { clock, signal }: { clock: StageClock; signal: AbortSignal | undefined },
): Promise<{ record: SandboxRecord; agent: Agent } | undefined> {
  const { name, env, labels, metadata, limits, image } = wanted
  const as = { name, env, labels, metadata, limits, createdAt: new Date().toISOString() }
  for (;;) {
    signal?.throwIfAborted()
    const claim = await host.store.takeFromPool(pool.id, as, { unique })
    if (claim === undefined) return undefined
    clock.mark('pool')
    try {
      // The reference may mean another image by now.
      if (claim.record.image.digest === image.digest) {
        const made = await handOver(host, claim, clock, signal)
        await claim.release()
        return made
      }
      host.info(`${claim.record.id} was of an older ${image.reference}, and is removed`)
    } catch (error) {
      // Of one that was given up it is not to be told what that has led to.
      if (signal?.aborted !== true)
        host.warn(`${claim.record.id} has waited in a pool, and is of no use: ${messageOf(error)}`)
    }
    await destroyClaimed(host, claim).catch((error: unknown) => {
      host.warn(`${claim.record.id} is not removed yet: ${messageOf(error)}`)
    })
  }
}

async function handOver(
  host: Host,
  { record, before }: { record: SandboxRecord; before: SandboxRecord },
  clock: StageClock,
  signal: AbortSignal | undefined,
): Promise<{ record: SandboxRecord; agent: Agent }> {
  const { id, machine: facts, port } = record
  if (facts === undefined || port === null) throw new Error('its record does not say how it runs')
  const machine = await host.vmm.attach(host.store.directoryOf(id))
  const agent = agentOf(host, { id, machine: facts, port })
  try {
    const { processes: _, ...limits } = { ...record.limits, processes: null }
    // Who fills a pool may have other defaults than who takes from it.
    if (!isDeepStrictEqual(record.limits, before.limits)) await machine.setLimits(limits)
    await machine.resume()
    clock.mark('vmm')
    const hello = await agent.waitUntilReady({ timeoutMs: HELLO_TIMEOUT_MS, ...(signal !== undefined && { signal }) })
    clock.mark('hello')
    const saved = { port, hooksMs: DEFAULT_HOOKS_MS }
    const now = await tellIdentity(host, record, { facts, port, agent, hello, saved, signal })
    clock.mark('identity')
    const running = await host.store.transition(id, {
      ...{
        state: stateNow('running'),
        machine: { ...facts, isFrozen: false },
        timings: { ...clock.stages },
        isDurable: true,
      },
    })
    return { record: { ...running, operation: undefined }, agent: now }
  } catch (error) {
    agent.close()
    throw error
  } finally {
    machine.close()
  }
}

/** It stood still, as it was, and answered before. */
const HELLO_TIMEOUT_MS = 10_000
