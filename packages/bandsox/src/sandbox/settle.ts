/** Makes a record say what is true: after a VMM, a shim or a manager has died. */
import { rm, stat } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, isSystemError, messageOf, type SandboxState } from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import { thawGuest } from '../guest/freeze.js'
import { isAlive } from '../process/identity.js'
import { removeUnfinished } from '../process/json-file.js'
import {
  adoptVmm,
  describeExit,
  located,
  type MachineStatus,
  readRun,
  type ShimRecords,
  type VmmExit,
} from '../process/shim.js'
import { isInProgress } from '../store/operation.js'
import type { MachineRecord, SandboxRecord } from '../store/record.js'
import type { Claim } from '../store/sandbox-store.js'
import type { Machine } from '../vmm/vmm.js'
import { agentOf } from './agent-of.js'
import type { Host } from './host.js'
import { tellIdentity } from './identity.js'
import { describeLastWords, type LastWords, lastWords, noWords } from './last-words.js'
import { dropHibernated } from './snapshot/hibernated-files.js'
import { stopMachine } from './stop.js'

/** SIGKILL takes effect at once, unless the process hangs in the kernel. */
const KILL_TIMEOUT_MS = 10_000
/** A shim clears up in some ms, where nothing is in its way. */
const SHIM_POLL_MS = 20

/** Operations that end with a sandbox that is somebody's, or with none. */
const LEAVING_NOTHING: readonly string[] = ['delete', 'create', 'restore', 'template', 'pool']
/** Operations that take a machine's state, for which it gives its vsock device back. */
const SAVING: readonly string[] = ['snapshot', 'fork', 'hibernate', 'commit']
/** Operations in which a running machine stands still for a while, or its guest's programs do. */
const STANDSTILLS: readonly string[] = [...SAVING, 'pause', 'resume']
/** A machine that has just been loaded on a busy host takes some seconds to answer. */
const THAW_TIMEOUT_MS = 10_000

/** States in which a VMM process should be there. */
const LIVE: readonly SandboxState['kind'][] = ['running', 'paused', 'stopping']

export const isLive = ({ kind }: SandboxState): boolean => LIVE.includes(kind)

/** Whether a sandbox is removed whose process has died at an operation. */
export const leavesNothing = ({ kind }: SandboxState, interrupted: string | undefined): boolean =>
  kind === 'creating' || (interrupted !== undefined && LEAVING_NOTHING.includes(interrupted))

export const stateNow = (kind: Exclude<SandboxState['kind'], 'failed'>): SandboxState => ({
  kind,
  since: new Date().toISOString(),
})

/** The state that a VMM's end leaves: a guest that powered itself off has stopped, anything else has failed. */
export function stateAfterExit(exit: VmmExit | undefined, words: LastWords = noWords): SandboxState {
  // Firecracker knows one end of a guest, and does not say whether it came by a panic.
  if (exit?.code === 0 && exit.shutdown !== 'guest-reset' && words.panic === undefined)
    return { kind: 'stopped', since: exit.at }
  const since = exit?.at ?? new Date().toISOString()
  if (exit === undefined) return { kind: 'failed', since, reason: 'VMM and shim ended together' }
  return { kind: 'failed', since, reason: describeEnd(exit, words) }
}

/** What a VMM says of itself is of interest where it ended by itself. */
const describeEnd = (exit: VmmExit, words: LastWords): string =>
  `${describeExit(exit)}${describeLastWords(exit.code === 0 ? { ...words, vmm: undefined } : words)}`

/**
 * Compares a record with the processes that really run, and corrects it. While another process works on the sandbox, its
 * record is that one's to change and is returned as it is.
 *
 * @returns undefined when the sandbox was the remains of a creation, or of a removal, that died, and is gone now.
 */
export async function settle(host: Host, record: SandboxRecord): Promise<SandboxRecord | undefined> {
  return (await settleAndLook(host, record))?.record
}

/** {@link settle}, for who also wants to know what there is of shim and VMM: `run`, where it was looked for and all was well. */
export async function settleAndLook(
  host: Host,
  record: SandboxRecord,
): Promise<{ record: SandboxRecord; run?: ShimRecords | undefined } | undefined> {
  const { isSettled, run } = await look(host, record)
  if (isSettled) return { record, run }
  const claim = await host.store.takeOver(record.id)
  if (claim === undefined) {
    const now = await host.store.read(record.id)
    return now && { record: now }
  }
  try {
    const settled = await setRight(host, claim.record, claim.interrupted)
    await claim.release()
    return settled && { record: { ...settled, operation: undefined } }
  } catch (error) {
    await claim.abandon() // what was to be removed is still to be removed
    throw error
  }
}

/**
 * Begins an operation that ends the machine at once: it does not wait for one that asks it to stop, nor for what such a one left.
 * (A restart is waited for: what it is just starting would not be ended.)
 *
 * @throws `busy`, `not-found`.
 */
export async function claimForEnd(host: Host, id: string, name: string): Promise<Claim> {
  for (;;) {
    const claim = await host.store.claim(id, name, { instead: ['stop'] })
    if (claim !== undefined) return claim
    const record = await host.store.read(id)
    if (record?.state.kind === 'creating') {
      await settle(host, record) // there is nothing in it to be ended gently, or kept
      continue
    }
    const dead = await host.store.takeOver(id)
    if (dead === undefined) continue
    await dead.become(name)
    return dead
  }
}

/**
 * Begins an operation on a sandbox, once what dead processes left of it was set right.
 *
 * @throws `busy`, `not-found`.
 */
export async function claimSettled(host: Host, id: string, name: string): Promise<Claim> {
  for (;;) {
    const record = await host.store.read(id)
    if (record !== undefined) await settle(host, record)
    const claim = await host.store.claim(id, name)
    if (claim !== undefined) return claim
  }
}

/** `run`: where it was looked for. */
async function look(
  host: Host,
  { id, state, operation, machine }: SandboxRecord,
): Promise<{ isSettled: boolean; run?: ShimRecords }> {
  if (operation !== undefined) return { isSettled: await isInProgress(operation) }
  if (!isLive(state)) return { isSettled: true }
  if (state.kind === 'stopping') return { isSettled: false } // and nobody is at it any more
  if (isNameless(state, machine)) return { isSettled: false }
  const run = await readRun(host.store.directoryOf(id))
  return { isSettled: run.vmmAlive && run.shimAlive && stateBy(run.status, state) === state, run }
}

const reasons: Partial<Record<MachineStatus['status'], string>> = {
  'io-error': "the host's disk is full",
  'internal-error': 'the VMM has met an internal error',
  'guest-panicked': 'the guest has panicked',
  suspended: 'the guest has suspended itself',
}

/** What a live machine's own word makes of its state: its VMM pauses it when the host's disk is full, and nobody else need know. */
export function stateBy(status: MachineStatus | undefined, state: SandboxState): SandboxState {
  if (status === undefined || status.status === 'starting' || status.status === 'shutdown') return state
  if (status.since <= state.since) return state // of before the state was written, or the same
  if (status.status === 'running') return state.kind === 'paused' ? { kind: 'running', since: status.since } : state
  if (state.kind !== 'running') return state
  const reason = reasons[status.status] ?? 'from outside of BandSox'
  return { kind: 'paused', since: status.since, reason }
}

/** @param interrupted The operation that a process died at. */
async function setRight(
  host: Host,
  record: SandboxRecord,
  interrupted: string | undefined,
): Promise<SandboxRecord | undefined> {
  const { id, state } = record
  // Of these nothing is worth keeping: it never was anybody's, or was to be gone.
  if (leavesNothing(state, interrupted)) {
    await destroy(host, record)
    host.info(`removed ${id}, whose ${interrupted === 'delete' ? 'removal' : 'creation'} had been interrupted`)
    return undefined
  }
  // Of a state that was half written, or is not what the machine is any more.
  if (state.kind !== 'hibernated') await dropHibernated(host, id)
  if (!isLive(state)) {
    // A start was interrupted: the machine never became somebody's.
    await endMachine(host, record)
    await host.vmm.clear(host.store.directoryOf(id))
    await removeUnfinished(host.store.directoryOf(id))
    if (record.cid === null && record.port === null) return await host.store.read(id)
    host.info(`ended the machine of ${id}, whose start had been interrupted`)
    return await host.store.transition(id, { state, releaseNumbers: true })
  }
  const now = await readFinalRun(host, host.store.directoryOf(id))
  if (now.vmmAlive && state.kind === 'stopping') {
    // Who wanted it to stop has died. Its guest may be half-way: it is not to be had back, and what it has written is to be kept.
    await finishStop(host, record)
    host.info(`stopped ${id}, whose stop had been interrupted`)
    return await host.store.transition(id, { state: stateNow('stopped'), releaseNumbers: true })
  }
  if (now.vmmAlive && shouldRun(record, interrupted)) {
    await goOn(host, record, interrupted)
    host.info(`${id} goes on: its ${interrupted ?? 'resume'} had been interrupted`)
    return await host.store.read(id)
  }
  if (now.vmmAlive && shouldStandStill(record, interrupted) && now.status?.status === 'running') {
    await standStill(host, id)
    host.info(`${id} stands still again: its ${interrupted} had been interrupted`)
    return await host.store.read(id)
  }
  if (now.vmmAlive) {
    const told = stateBy(now.status, state)
    if (told === state) return await host.store.read(id)
    host.info(`${id} is ${told.kind}${'reason' in told && told.reason !== undefined ? `: ${told.reason}` : ''}`)
    return await host.store.transition(id, { state: told })
  }
  await vsockIsGone(host, record)
  const words = now.run === undefined ? noWords : await lastWords(host.store.directoryOf(id), now.run.startedAt)
  host.info(`${id} has ended: ${now.exit === undefined ? 'nobody saw how' : describeEnd(now.exit, words)}`)
  return await host.store.transition(id, { state: stateAfterExit(now.exit, words), releaseNumbers: true })
}

/** Loaded from a state, it runs or is about to, and its guest still takes itself for what was saved. */
export const isNameless = ({ kind }: SandboxState, machine: MachineRecord | undefined): boolean =>
  kind === 'running' && machine?.pendingPort !== undefined

/** A machine that may stand still for something that its process died at. Who was let go on by a person goes on. */
function shouldRun({ state, machine }: SandboxRecord, interrupted: string | undefined): boolean {
  if (state.kind === 'paused') return interrupted === 'resume' && state.reason === undefined
  return isNameless(state, machine) || (interrupted !== undefined && STANDSTILLS.includes(interrupted))
}

/** A machine that a person has paused may have been let go for a moment, to give its vsock device back. */
const shouldStandStill = ({ state }: SandboxRecord, interrupted: string | undefined): boolean =>
  state.kind === 'paused' &&
  state.reason === undefined &&
  interrupted !== undefined &&
  STANDSTILLS.includes(interrupted)

async function standStill(host: Host, id: string): Promise<void> {
  const machine = await host.vmm.attach(host.store.directoryOf(id))
  try {
    // It may be asked for already: given back only after the next resume, it would be missing from then on.
    await machine.detachVsock()
  } catch (error) {
    host.warn(`the guest of sandbox ${id} keeps its vsock device: ${messageOf(error)}`)
  } finally {
    await machine.pause().finally(() => machine.close())
  }
}

/**
 * Lets a machine run on, and its guest's programs.
 *
 * @throws when the machine cannot be had to run: the next one tries again.
 */
async function goOn(host: Host, record: SandboxRecord, interrupted: string | undefined): Promise<void> {
  const { id, state, machine: facts } = record
  const machine = await host.vmm.attach(host.store.directoryOf(id))
  try {
    await machine.resume()
    await putVsockBack(machine, interrupted).catch((error: unknown) => {
      host.warn(`sandbox ${id} goes on without its vsock device: ${messageOf(error)}`)
    })
  } finally {
    machine.close()
  }
  if (state.kind === 'paused')
    await host.store.transition(id, {
      state: stateNow('running'),
      ...(facts !== undefined && { machine: { ...facts, isFrozen: false } }),
    })
  try {
    await tellToGoOn(host, record)
  } catch (error) {
    // Its programs go on by themselves in a while; a guest that does not answer is not kept from being stopped.
    host.warn(`sandbox ${id} goes on, and its agent does not answer: ${messageOf(error)}`)
  }
}

async function putVsockBack(machine: Machine, interrupted: string | undefined): Promise<void> {
  // The guest may just be giving it back, and would have none a moment later.
  if (interrupted !== undefined && SAVING.includes(interrupted)) await machine.detachVsock()
  await machine.attachVsock()
}

/** Its programs stand still, or do not; one that was loaded from a state has also to be told who it is. */
async function tellToGoOn(host: Host, record: SandboxRecord): Promise<void> {
  const { id, state, machine: facts, port } = record
  const agent = agentOf(host, { id, machine: facts, port: facts?.pendingPort ?? port })
  let now: Agent | undefined
  try {
    if (facts?.pendingPort === undefined || port === null) {
      await thawGuest(agent, { timeoutMs: THAW_TIMEOUT_MS })
      return
    }
    const hello = await agent.waitUntilReady({ timeoutMs: THAW_TIMEOUT_MS })
    const { pendingPort, ...known } = facts
    now = await tellIdentity(host, record, {
      ...{ facts, port, agent, hello, saved: { port: pendingPort, hooksMs: THAW_TIMEOUT_MS } },
    })
    await host.store.transition(id, { state, machine: known })
  } finally {
    now?.close()
    agent.close()
  }
}

async function finishStop(host: Host, record: SandboxRecord): Promise<void> {
  const directory = host.store.directoryOf(record.id)
  const machine = await host.vmm.attach(directory)
  const agent = agentOf(host, record)
  try {
    // It may have been paused before; a VMM that does not answer is ended all the same.
    await machine.resume().catch((error: unknown) => host.debug(messageOf(error)))
    await stopMachine(machine, agent, { debug: host.debug, hasBeenAsked: true })
  } finally {
    agent.close()
    machine.close()
  }
  await vsockIsGone(host, record)
}

/** Ends a VM whatever state it is in, gives back what it holds, and removes it with its directory. The caller has the claim. */
export async function destroy(host: Host, record: SandboxRecord): Promise<void> {
  await endMachine(host, record)
  await host.store.remove(record.id)
}

/** The same at the end of an operation that ends with it. Where it fails, the next command tries it again, also while we live. */
export async function destroyClaimed(host: Host, claim: Claim): Promise<void> {
  try {
    await destroy(host, claim.record)
  } catch (error) {
    await claim.abandon()
    throw error
  }
}

/** Ends the VMM with SIGKILL, if it lives, and sees that nothing of it is left. @throws `vmm-failed` when it does not end. */
export async function endMachine(host: Host, record: SandboxRecord): Promise<VmmExit | undefined> {
  const exit = await killVmm(host, host.store.directoryOf(record.id))
  await vsockIsGone(host, record)
  return exit
}

async function killVmm(host: Host, directory: string): Promise<VmmExit | undefined> {
  const now = await readFinalRun(host, directory)
  if (!now.vmmAlive) return now.exit
  const machine = await host.vmm.attach(directory)
  try {
    await machine.signal('SIGKILL')
    const exit = await machine.exitedWithin(KILL_TIMEOUT_MS)
    if (exit !== undefined) return exit
  } finally {
    machine.close()
  }
  throw new BandSoxError(
    'vmm-failed',
    `the VMM of ${path.basename(directory)} did not end within ${KILL_TIMEOUT_MS} ms of SIGKILL`,
    {
      hint: 'it hangs in the host kernel: see dmesg',
    },
  )
}

/** Operators were told to look for these lines. The shim has removed the socket; should it have died first, we do. */
export async function vsockIsGone(host: Host, { id, cid, machine }: SandboxRecord): Promise<void> {
  if (cid === null || !machine?.vsock) return
  const socket = path.join(host.store.directoryOf(id), machine.vsock.socket)
  host.debug(`Vsock bridge loop stopped for ${id}`)
  host.debug(`Cleaning up vsock bridge for ${id}`)
  await rm(socket, { force: true })
  host.debug('Closed vsock bridge socket')
  host.debug(`Removed vsock socket: ${socket}`)
}

/** What there is of shim and VMM, once a shim that is just ending has said how it ended, and a dead one was replaced. */
async function readFinalRun(host: Host, directory: string): Promise<Awaited<ReturnType<typeof readRun>>> {
  const found = await readRun(directory)
  if (found.run === undefined || found.exit !== undefined || (found.vmmAlive && found.shimAlive)) return found
  if (found.shimAlive) return await runAfterShim(directory)
  if (!(await isThere(directory))) return found
  try {
    await adoptVmm(host.shimPath, directory)
  } catch (error) {
    // With the VMM gone as well there was nothing to adopt, and the new shim has cleaned up and ended.
    if (await isAlive(located(found.run.vmm, found.run))) throw error
  }
  return await readRun(directory)
}

async function isThere(directory: string): Promise<boolean> {
  try {
    await stat(directory)
    return true
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return false
    throw error
  }
}

/** The VMM has ended and its shim is cleaning up: it has closed its socket by then, and writes down the end last of all. */
async function runAfterShim(directory: string): Promise<Awaited<ReturnType<typeof readRun>>> {
  const deadline = performance.now() + KILL_TIMEOUT_MS
  for (;;) {
    const now = await readRun(directory)
    if (now.exit !== undefined || !now.shimAlive || performance.now() > deadline) return now
    await delay(SHIM_POLL_MS)
  }
}
