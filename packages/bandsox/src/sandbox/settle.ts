/** Makes a record say what is true: after a VMM, a shim or a manager has died. */
import path from 'node:path'
import { BandSoxError, isSystemError, type SandboxState } from '@bandsox/sdk'
import { isAlive } from '../process/identity.js'
import { adoptVmm, describeExit, readRun, ShimClient, type VmmExit } from '../process/shim.js'
import { cidPool, type NumberPool, portPool } from '../store/lease.js'
import { lockOperation, operationInProgress } from '../store/operation-lock.js'
import type { SandboxRecord } from '../store/record.js'
import type { Host } from './host.js'

/** SIGKILL takes effect at once, unless the process hangs in the kernel. */
const KILL_TIMEOUT_MS = 10_000

/** States in which a VMM process should be there. */
const LIVE: readonly SandboxState['kind'][] = ['running', 'paused', 'stopping']

export const stateNow = (kind: Exclude<SandboxState['kind'], 'failed'>): SandboxState => ({
  kind,
  since: new Date().toISOString(),
})

/** Gives back what a running sandbox holds, and returns the record without it. */
export async function releaseNumbers(host: Host, record: SandboxRecord): Promise<SandboxRecord> {
  await releaseNumber(host, cidPool, record.cid, record.id)
  await releaseNumber(host, portPool, record.port, record.id)
  return { ...record, cid: null, port: null }
}

async function releaseNumber(host: Host, pool: NumberPool, number: number | null, owner: string): Promise<void> {
  if (number === null) return
  await host.store.leases.release(pool, number, owner)
  host.debug(`Released ${pool.name}: ${number}`)
}

/** The state that a VMM's end leaves: a guest that powered itself off has stopped, anything else has failed. */
export function stateAfterExit(exit: VmmExit | undefined): SandboxState {
  if (exit?.code === 0) return { kind: 'stopped', since: exit.at }
  const since = exit?.at ?? new Date().toISOString()
  return { kind: 'failed', since, reason: exit === undefined ? 'VMM and shim ended together' : describeExit(exit) }
}

/**
 * Compares a record with the processes that really run, and corrects it. While another process works on the sandbox, its
 * record is that one's to change and is returned as it is.
 *
 * @returns undefined when the sandbox was the remains of a creation that died, and is gone now.
 */
export async function settle(host: Host, record: SandboxRecord): Promise<SandboxRecord | undefined> {
  const { state } = record
  if (state.kind !== 'creating' && !LIVE.includes(state.kind)) return record
  const directory = host.store.directoryOf(record.id)
  if ((await operationInProgress(directory)) !== undefined) return record
  const found = await readRun(directory)
  if (found.vmmAlive && found.shimAlive && state.kind !== 'creating') return record
  const unlock = await tryLock(directory)
  if (unlock === undefined) return record
  try {
    // What was read before the lock may have been changed since: a creation that looked dead may just have succeeded.
    const current = await host.store.read(record.id)
    if (current === undefined || current.state.kind !== state.kind) return current
    if (state.kind === 'creating') {
      await destroy(host, current)
      return undefined
    }
    const now = await readFinalRun(host, directory)
    if (now.vmmAlive) return current
    const settled = { ...(await releaseNumbers(host, current)), state: stateAfterExit(now.exit) }
    await host.store.write(settled)
    return settled
  } finally {
    await unlock()
  }
}

/** Ends a VM whatever state it is in, gives back what it holds, and removes its directory. The caller holds the lock. */
export async function destroy(host: Host, record: SandboxRecord): Promise<void> {
  const directory = host.store.directoryOf(record.id)
  await killVmm(host, directory)
  await releaseNumbers(host, record)
  await host.store.remove(record.id)
}

/** Ends the VMM with SIGKILL, if it lives. @throws `vmm-failed` when it does not end. */
export async function killVmm(host: Host, directory: string): Promise<VmmExit | undefined> {
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

/** What there is of shim and VMM, once a shim that is just ending has said how it ended, and a dead one was replaced. */
async function readFinalRun(host: Host, directory: string): Promise<Awaited<ReturnType<typeof readRun>>> {
  const found = await readRun(directory)
  if (found.run === undefined || found.exit !== undefined || (found.vmmAlive && found.shimAlive)) return found
  if (found.shimAlive) {
    await waitForShim(directory)
    return await readRun(directory)
  }
  try {
    await adoptVmm(host.shimPath, directory)
  } catch (error) {
    // With the VMM gone as well there was nothing to adopt, and the new shim has cleaned up and ended.
    if (await isAlive(found.run.vmm)) throw error
  }
  return await readRun(directory)
}

/** The VMM has ended and its shim is cleaning up. */
async function waitForShim(directory: string): Promise<void> {
  try {
    const shim = await ShimClient.connect(directory)
    try {
      await shim.exitedWithin(KILL_TIMEOUT_MS)
    } finally {
      shim.close()
    }
  } catch (error) {
    // It was quicker than we: its socket is gone, and `exit.json` is there.
    if (!(error instanceof BandSoxError && error.code === 'vmm-failed')) throw error
  }
}

/** @returns undefined while another process works there, or when the directory is gone. */
export async function tryLock(directory: string): Promise<(() => Promise<void>) | undefined> {
  try {
    return await lockOperation(directory, 'cleanup')
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'busy') return undefined
    if (isSystemError(error, 'ENOENT')) return undefined // another process removed it just now
    throw error
  }
}
