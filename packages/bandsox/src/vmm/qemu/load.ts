/** Waits until a QEMU that has just been started has loaded a state, and says why where it cannot. */
import { stat } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, isSystemError, messageOf, printableLine } from '@bandsox/sdk'
import { z } from 'zod'
import { readTail } from '../../process/read-tail.js'
import { describeExit, endOfRun, VMM_LOG } from '../../process/shim.js'
import type { LoadOptions, Machine } from '../vmm.js'
import { type Qmp, withQmp } from './qmp.js'

/** QEMU answers nothing while it loads, which takes some 50 ms; a host on which many start at once is only slow. */
const LOAD_PATIENCE_MS = 60_000
const LOAD_POLL_MS = 5
const OWN_END_MS = 500
const KILL_TIMEOUT_MS = 10_000
const WORDS_BYTES = 2_048
const MAX_CHARACTERS = 600

const statusSchema = z.object({ status: z.string() })

/** @throws `host-unsupported` for what QEMU cannot do. */
export function requireLoadable({ networkOverrides, clockRealtime, trackDirtyPages }: LoadOptions): void {
  const wanted = [
    Object.keys(networkOverrides ?? {}).length > 0 && 'give a loaded machine other TAPs',
    clockRealtime === true && "give a loaded machine the host's time",
    trackDirtyPages === true && 'save only what has changed since',
  ].find((what) => what !== false)
  if (wanted !== undefined) throw new BandSoxError('host-unsupported', `the QEMU driver cannot ${wanted}`)
}

/**
 * @param resume Whether the machine is to run then. In the same conversation: each costs some ms while an emulated guest waits.
 * @throws `signal.reason`; `vmm-control`.
 */
export async function awaitLoaded(qmpSocket: string, resume: boolean, signal: AbortSignal | undefined): Promise<void> {
  const deadline = performance.now() + LOAD_PATIENCE_MS
  const untilLoaded = async (qmp: Qmp): Promise<void> => {
    for (;;) {
      signal?.throwIfAborted()
      if (statusSchema.parse(await qmp.execute('query-status')).status !== 'inmigrate') return
      if (performance.now() > deadline)
        throw new BandSoxError('vmm-control', `QEMU did not load the state within ${LOAD_PATIENCE_MS} ms`)
      await delay(LOAD_POLL_MS)
    }
  }
  const talk = async (qmp: Qmp): Promise<void> => {
    await untilLoaded(qmp)
    if (resume) await qmp.execute('cont')
  }
  await withQmp(qmpSocket, talk, { timeoutMs: LOAD_PATIENCE_MS })
}

/** Ends a machine that could not be loaded: it is good for nothing. */
export async function endUnloaded(machine: Machine): Promise<void> {
  try {
    if ((await machine.exitedWithin(OWN_END_MS)) !== undefined) return
    await machine.signal('SIGKILL')
    await machine.exitedWithin(KILL_TIMEOUT_MS)
  } finally {
    machine.close()
  }
}

/** Where QEMU's words of this run will begin in its log, which goes on over several runs. */
export async function beginOfWords(directory: string): Promise<number> {
  try {
    return (await stat(path.join(directory, VMM_LOG))).size
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return 0
    throw error
  }
}

/** @returns What is told of a failed load: with what QEMU printed, where it did. */
export async function explained(error: unknown, directory: string, begin: number): Promise<unknown> {
  const words = await wordsSince(directory, begin)
  if (words !== '')
    return new BandSoxError('vmm-control', `QEMU could not load the state: ${words}`, {
      cause: error,
      hint: 'a state is loaded by the QEMU that has saved it, into a machine of the same shape',
    })
  const exit = await endOfRun(directory)
  if (exit === undefined) return error
  return new BandSoxError('vmm-failed', `${messageOf(error)}; ${describeExit(exit)}`, { cause: error })
}

async function wordsSince(directory: string, begin: number): Promise<string> {
  const log = path.join(directory, VMM_LOG)
  const now = await beginOfWords(directory)
  // One that is shorter was begun anew in between.
  const tail = (await readTail(log, Math.min(WORDS_BYTES, now < begin ? now : now - begin))) ?? ''
  return printableLine(tail.trim().split('\n').join('; ').slice(-MAX_CHARACTERS))
}
