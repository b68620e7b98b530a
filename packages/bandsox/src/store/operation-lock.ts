/** One operation at a time on a sandbox, across processes: a file that names the process at work. */
import { rm } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError } from '@bandsox/sdk'
import { isAlive } from '../process/identity.js'
import { lockHolder, outOfSightHint, tryLockFile } from '../process/lock-file.js'

const LOCK_FILE = 'operation.lock'

/** The operation in progress; undefined when there is none, or its process has died. */
export async function operationInProgress(directory: string): Promise<string | undefined> {
  const lock = await lockHolder(path.join(directory, LOCK_FILE))
  return lock !== undefined && (await isAlive(lock)) ? lock.operation : undefined
}

/** True when a process died with the lock; false also when there is none. */
export async function isLockStale(directory: string): Promise<boolean> {
  const lock = await lockHolder(path.join(directory, LOCK_FILE))
  return lock !== undefined && !(await isAlive(lock))
}

/** Ends an operation of this process whose folder was renamed since; else its own release does. */
export const unlockOperation = (directory: string): Promise<void> =>
  rm(path.join(directory, LOCK_FILE), { force: true })

/**
 * Takes the lock, also from a process that died with it.
 *
 * @returns The release.
 * @throws `busy` while another operation is in progress.
 */
export async function lockOperation(directory: string, operation: string): Promise<() => Promise<void>> {
  const file = path.join(directory, LOCK_FILE)
  const attempt = await tryLockFile(file, operation)
  if ('release' in attempt) return attempt.release
  const { holder } = attempt
  const hint = await outOfSightHint(file, holder)
  throw new BandSoxError(
    'busy',
    `sandbox ${path.basename(directory)} is busy: ${holder.operation} is in progress (process ${holder.pid})`,
    hint === undefined ? {} : { hint },
  )
}
