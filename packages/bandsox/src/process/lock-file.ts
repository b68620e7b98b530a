/** A lock between processes: a file that names the process which holds it, and that a process's death sets free. */
import { randomBytes } from 'node:crypto'
import { link, rm } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { z } from 'zod'
import { identify, isAlive } from './identity.js'
import { readJsonFile, writeJsonFile } from './json-file.js'

const lockSchema = z.object({ operation: z.string(), pid: z.number(), startTime: z.number() })
export type LockHolder = z.infer<typeof lockSchema>

/** A holder tells nobody when it is done, and may be killed: it is looked at again after this time. */
const POLL_MS = 50

/** Who is written in the lock, living or dead; undefined when nobody is. */
export const lockHolder = (file: string): Promise<LockHolder | undefined> => readJsonFile(file, lockSchema)

/** The release of a lock that was taken, or the living process that has it. */
export type LockAttempt = { release: () => Promise<void> } | { holder: LockHolder }

/** Takes the lock, also from a process that died with it. */
export async function tryLockFile(file: string, operation: string): Promise<LockAttempt> {
  const self = await identify(process.pid)
  if (self === undefined) throw new BandSoxError('internal', 'cannot tell who we are: /proc is not readable')
  const claim = `${file}.${randomBytes(6).toString('hex')}`
  await writeJsonFile(claim, { operation, ...self })
  try {
    const holder = await take(claim, file)
    return holder === undefined ? { release: () => rm(file, { force: true }) } : { holder }
  } finally {
    await rm(claim, { force: true })
  }
}

/**
 * Takes the lock as soon as it is free.
 *
 * @param onWait Told once who has it, when it is not free at once.
 * @returns The release.
 * @throws `signal.reason`.
 */
export async function waitForLockFile(
  file: string,
  operation: string,
  { onWait, signal }: { onWait?: ((holder: LockHolder) => void) | undefined; signal?: AbortSignal | undefined } = {},
): Promise<() => Promise<void>> {
  for (let told = false; ; told = true) {
    signal?.throwIfAborted()
    const attempt = await tryLockFile(file, operation)
    if ('release' in attempt) return attempt.release
    if (!told) onWait?.(attempt.holder)
    await delay(POLL_MS, undefined, signal === undefined ? {} : { signal }).catch(() => signal?.throwIfAborted())
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
async function take(claim: string, file: string): Promise<LockHolder | undefined> {
  for (;;) {
    try {
      await link(claim, file)
      return undefined
    } catch (error) {
      if (!isSystemError(error, 'EEXIST')) throw error
    }
    const holder = await lockHolder(file)
    if (holder === undefined) continue // released just now
    if (await isAlive(holder)) return holder
    const takeover = `${file}.${holder.pid}-${holder.startTime}`
    const other = await take(claim, takeover)
    if (other !== undefined) return other
    try {
      const now = await lockHolder(file)
      if (now?.pid === holder.pid && now.startTime === holder.startTime) await rm(file, { force: true })
    } finally {
      await rm(takeover, { force: true })
    }
  }
}
