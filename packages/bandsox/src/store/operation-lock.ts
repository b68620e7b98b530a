/** One operation at a time on a sandbox, across processes: a file that names the process at work. */
import { randomBytes } from 'node:crypto'
import { link, rm } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { z } from 'zod'
import { identify, isAlive } from '../process/identity.js'
import { readJsonFile, writeJsonFile } from '../process/json-file.js'

const LOCK_FILE = 'operation.lock'
const lockSchema = z.object({ operation: z.string(), pid: z.number(), startTime: z.number() })
type Holder = z.infer<typeof lockSchema>

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
    const holder = await take(claim, file)
    if (holder === undefined) return () => rm(file, { force: true })
    throw new BandSoxError(
      'busy',
      `sandbox ${path.basename(directory)} is busy: ${holder.operation} is in progress (process ${holder.pid})`,
    )
  } finally {
    await rm(claim, { force: true })
  }
}

/**
 * Links `claim` to `file`, unless a living process holds that; what a dead one held is removed first.
 *
 * Whoever removes a dead holder's file must be alone at it, or it would remove the file of one who has taken over meanwhile. So
 * it first takes a file that is named after the dead one, in this same way: who dies on it is only one more dead holder.
 *
 * @returns The living process that holds it, or is just taking it over; undefined when it is ours.
 */
async function take(claim: string, file: string): Promise<Holder | undefined> {
  for (;;) {
    try {
      await link(claim, file)
      return undefined
    } catch (error) {
      if (!isSystemError(error, 'EEXIST')) throw error
    }
    const holder = await readJsonFile(file, lockSchema)
    if (holder === undefined) continue // released just now
    if (await isAlive(holder)) return holder
    const takeover = `${file}.${holder.pid}-${holder.startTime}`
    const other = await take(claim, takeover)
    if (other !== undefined) return other
    try {
      const now = await readJsonFile(file, lockSchema)
      if (now?.pid === holder.pid && now.startTime === holder.startTime) await rm(file, { force: true })
    } finally {
      await rm(takeover, { force: true })
    }
  }
}
