/** Has a sandbox stand still for a moment: its programs first, then its links, then its machine; and go on, whatever happens. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import type { Agent } from '../../guest/agent.js'
import { freezeGuest, thawGuest } from '../../guest/freeze.js'
import { describeExit, endOfRun, readRun } from '../../process/shim.js'
import type { SandboxRecord } from '../../store/record.js'
import type { Machine } from '../../vmm/vmm.js'
import type { Host } from '../host.js'

/** Without hooks: to freeze takes some ms, to sync what is not written yet as long as the disk takes. */
const FREEZE_TIMEOUT_MS = 60_000
/** In the guest’s own time, and in that of what is restored: should nobody ever come back, it goes on by itself. */
const LEASE_MS = 300_000
const THAW_TIMEOUT_MS = 10_000
const PAUSE_PATIENCE_MS = 2_000
export const DEFAULT_HOOKS_MS = 10_000

export interface Standstill<T> {
  result: T
  pauseMs: number
  /** Whether the guest's programs stood still before the guest did. */
  isFrozen: boolean
}

export interface StandstillOptions {
  hooksMs?: number | undefined
  /** No state is saved of the machine, so what no state can hold may stay. Default false. */
  keepsVsock?: boolean
  signal?: AbortSignal | undefined
}

/**
 * @param record As the caller's claim on it says: running, or paused, which it stays.
 * @param work Done while the machine stands still. Once it has called `itEnds`, nothing goes on.
 * @throws `hook-failed`, what the agent, the VMM and `work` throw, `signal.reason`. It goes on then as before; `vmm-failed` when it has ended.
 */
export async function atStandstill<T>(
  host: Host,
  record: SandboxRecord,
  agent: Agent,
  { hooksMs = DEFAULT_HOOKS_MS, keepsVsock = false, signal }: StandstillOptions,
  work: (machine: Machine, itEnds: () => void) => Promise<T>,
): Promise<Standstill<T>> {
  const machine = await host.vmm.attach(host.store.directoryOf(record.id))
  let goesOn = true
  const itEnds = () => {
    goesOn = false
  }
  try {
    if (record.state.kind === 'paused') {
      if (!keepsVsock) await letGoOfVsock(machine, record)
      const startedAt = performance.now()
      const result = await work(machine, itEnds)
      return { result, pauseMs: performance.now() - startedAt, isFrozen: record.machine?.isFrozen === true }
    }
    const isFrozen = await freeze(host, record.id, agent, hooksMs, signal)
    try {
      agent.quiesce(new BandSoxError('link-lost', `sandbox ${record.id} stands still for a moment`))
      if (!keepsVsock) await machine.detachVsock()
      const startedAt = performance.now()
      const result = await whilePaused(
        machine,
        () => goesOn,
        signal,
        () => work(machine, itEnds),
      )
      return { result, pauseMs: performance.now() - startedAt, isFrozen }
    } finally {
      if (goesOn) await goOn(host, record.id, agent, isFrozen)
    }
  } catch (error) {
    throw (await endOf(host, record.id, error)) ?? error
  } finally {
    machine.close()
  }
}

/** Also when its shim, by which everything goes, has died meanwhile. */
async function goOn(host: Host, id: string, agent: Agent, isFrozen: boolean): Promise<void> {
  const directory = host.store.directoryOf(id)
  if (!(await readRun(directory)).vmmAlive) return
  try {
    const machine = await host.vmm.attach(directory)
    await machine.attachVsock().finally(() => machine.close())
  } catch (error) {
    host.warn(`sandbox ${id} goes on without its vsock device: ${messageOf(error)}`)
  }
  if (isFrozen) await thaw(host, id, agent)
}

/** What is told in place of all that fails in a machine that has ended. */
async function endOf(host: Host, id: string, error: unknown): Promise<BandSoxError | undefined> {
  const directory = host.store.directoryOf(id)
  if ((await readRun(directory)).vmmAlive) return undefined
  const exit = await endOfRun(directory)
  const how = exit === undefined ? 'nobody saw how' : describeExit(exit)
  return new BandSoxError('vmm-failed', `sandbox ${id} has ended while it stood still: ${how}`, {
    cause: error,
    hint: `its disk is there: bandsox vm start ${id}`,
  })
}

/** Where no state can hold it, a guest must run to give it back: its programs, which were frozen before the pause, do not. */
async function letGoOfVsock(machine: Machine, { machine: facts }: SandboxRecord): Promise<void> {
  if (facts?.vsock?.backend !== 'daemon') return
  await machine.resume()
  try {
    await machine.detachVsock()
  } finally {
    await machine.pause()
  }
}

async function whilePaused<T>(
  machine: Machine,
  goesOn: () => boolean,
  signal: AbortSignal | undefined,
  work: () => Promise<T>,
): Promise<T> {
  try {
    await machine.pause()
  } catch (error) {
    // It may have come to that all the same, too late to be heard of; one that runs refuses to be resumed, or does not mind.
    await machine.resume().catch(() => undefined)
    throw error
  }
  try {
    signal?.throwIfAborted()
    return await work()
  } finally {
    if (goesOn()) await machine.resume()
  }
}

/** @returns False for a guest whose agent cannot; that is told. */
async function freeze(
  host: Host,
  id: string,
  agent: Agent,
  hooksMs: number,
  signal: AbortSignal | undefined,
): Promise<boolean> {
  try {
    const frozen = await freezeGuest(agent, { hooksMs, leaseMs: LEASE_MS, timeoutMs: FREEZE_TIMEOUT_MS, signal })
    for (const warning of frozen.warnings) host.warn(`sandbox ${id}: ${warning}`)
    return true
  } catch (error) {
    if (!(error instanceof BandSoxError && error.code === 'agent-incompatible')) {
      // It may have come to that all the same, with nobody left to hear of it.
      if (!(error instanceof BandSoxError && error.code === 'hook-failed')) await goOn(host, id, agent, true)
      throw error
    }
    host.warn(`sandbox ${id}: its programs run on until its machine stands still: ${messageOf(error)}`)
    return false
  }
}

/**
 * Before a pause by a person, who may have a snapshot taken of it as it stands: without the guest's hooks, and not waited for long.
 *
 * @returns Whether they stand still.
 */
export async function freezeForPause(host: Host, id: string, agent: Agent): Promise<boolean> {
  try {
    const options = { hooksMs: 0, leaseMs: LEASE_MS, signal: AbortSignal.timeout(PAUSE_PATIENCE_MS) }
    await freezeGuest(agent, { ...options, timeoutMs: PAUSE_PATIENCE_MS })
    return true
  } catch (error) {
    host.debug(`the programs of sandbox ${id} were not frozen before its machine: ${messageOf(error)}`)
    return false
  }
}

/** Whether they stood still is not always known: a guest may have taken longer to freeze them than it was waited for. */
export async function thawAfterPause(
  host: Host,
  { id, machine }: Pick<SandboxRecord, 'id' | 'machine'>,
  agent: Agent,
): Promise<void> {
  if (machine?.isFrozen === true) return await thaw(host, id, agent)
  try {
    await thawGuest(agent, { timeoutMs: PAUSE_PATIENCE_MS, signal: AbortSignal.timeout(PAUSE_PATIENCE_MS) })
  } catch (error) {
    host.debug(`sandbox ${id} was resumed, and its agent not asked to let its programs go on: ${messageOf(error)}`)
  }
}

/** It goes on by itself later, should this fail: which is told, and does not make a failure of what was done. */
export async function thaw(host: Host, id: string, agent: Agent): Promise<void> {
  try {
    await thawGuest(agent, { timeoutMs: THAW_TIMEOUT_MS })
  } catch (error) {
    host.warn(`the programs of sandbox ${id} go on within ${LEASE_MS / 1000} s: ${messageOf(error)}`)
  }
}
