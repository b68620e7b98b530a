/** One operation at a time on a sandbox, across processes: a file that names the process at work. */
import { randomBytes } from 'node:crypto'
import { link, rename, rm } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { z } from 'zod'
import { identify, isAlive } from '../process/identity.js'
import { readJsonFile, writeJsonFile } from '../process/json-file.js'

const LOCK_FILE = 'operation.lock'
const lockSchema = z.object({ operation: z.string(), pid: z.number(), startTime: z.number() })

/** The operation in progress; undefined when there is none, or its process has died. */
export async function operationInProgress(directory: string): Promise<string | undefined> {
  const lock = await readJsonFile(path.join(directory, LOCK_FILE), lockSchema)
  return lock !== undefined && (await isAlive(lock)) ? lock.operation : undefined
}

/** True when a process died with the lock; false also when there is none. */
export async function isLockStale(directory: string): Promise<boolean> {
  const lock = await readJsonFile(path.join(directory, LOCK_FILE), lockSchema)
  return lock !== undefined && !(await isAlive(lock))
}

/**
 * Takes the lock, also from a process that died with it.
 *
 * @returns The release.
 * @throws `busy` while another operation is in progress.
 */
export async function lockOperation(directory: string, operation: string): Promise<() => Promise<void>> {
  const self = await identify(process.pid)
  if (self === undefined) throw new BandSoxError('internal', 'cannot tell who we are: /proc is not readable')
  const file = path.join(directory, LOCK_FILE)
  const claim = `${file}.${randomBytes(6).toString('hex')}`
  await writeJsonFile(claim, { operation, ...self })
  try {
    for (;;) {
      try {
        await link(claim, file)
        return () => rm(file, { force: true })
      } catch (error) {
        if (!isSystemError(error, 'EEXIST')) throw error
      }
      await removeStale(file, directory)
    }
  } finally {
    await rm(claim, { force: true })
  }
}

/** Takes a dead process's lock away. @throws `busy` when its holder lives. */
async function removeStale(file: string, directory: string): Promise<void> {
  const holder = await readJsonFile(file, lockSchema)
  if (holder === undefined) return
  if (await isAlive(holder)) {
    throw new BandSoxError(
      'busy',
      `sandbox ${path.basename(directory)} is busy: ${holder.operation} is in progress (process ${holder.pid})`,
    )
  }
  // Renamed before it is removed: of two processes that saw the same dead holder, only one gets it.
  const stale = `${file}.${randomBytes(6).toString('hex')}`
  try {
    await rename(file, stale)
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return
    throw error
  }
  const renamed = await readJsonFile(stale, lockSchema)
  const isTheDeadOnes = renamed?.pid === holder.pid && renamed.startTime === holder.startTime
  if (!isTheDeadOnes) await restore(stale, file)
  await rm(stale, { force: true })
}

/** The other process had replaced it in the meantime: its lock is put back. */
async function restore(stale: string, file: string): Promise<void> {
  try {
    await link(stale, file)
  } catch (error) {
    if (!isSystemError(error, 'EEXIST')) throw error
  }
}
