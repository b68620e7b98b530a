/** A lock between processes: a file that names the process which holds it, and that a process's death sets free. */
import { randomBytes } from 'node:crypto'
import { link, readdir, rm, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { z } from 'zod'
import { identifySelf, isAlive, isOutOfSight, isSameProcess, type ProcessIdentity } from './identity.js'
import { readJsonFile } from './json-file.js'

const lockSchema = z.object({
  operation: z.string(),
  pid: z.number(),
  startTime: z.number(),
  // Not in the files of earlier versions.
  bootId: z.string().optional(),
  pidNamespace: z.number().optional(),
})
export type LockHolder = z.infer<typeof lockSchema>

/** A holder tells nobody when it is done, and may be killed: it is looked at again after this time, and then after twice as long. */
const FIRST_POLL_MS = 50
const MAX_POLL_MS = 500
const DAMAGED_HINT = 'remove the file when no other command works on the same storage'

/** Of no living process. */
const nobody: LockHolder = { operation: 'nothing', pid: 0, startTime: 0 }

/**
 * Who is written in the lock, living or dead; undefined when nobody is.
 *
 * @throws `artifact-damaged` for what another version wrote.
 */
export async function lockHolder(file: string): Promise<LockHolder | undefined> {
  try {
    return await readJsonFile(file, lockSchema, DAMAGED_HINT)
  } catch (error) {
    // Locks appear whole, but are not synced: an empty one is what a loss of power left, and its holder is of another boot.
    if (error instanceof BandSoxError && error.cause instanceof SyntaxError) return nobody
    throw error
  }
}

/** The release of a lock that was taken, or the living process that has it. */
export type LockAttempt = { release: () => Promise<void> } | { holder: LockHolder }

/**
 * Takes the lock, also from a process that died with it.
 *
 * @throws `internal` when /proc is not readable; `artifact-damaged`.
 */
export async function tryLockFile(file: string, operation: string): Promise<LockAttempt> {
  const self = await identifySelf()
  // Nothing is written while somebody has it: who waits asks many times.
  const present = await lockHolder(file)
  if (present !== undefined && (await isAlive(present))) return { holder: present }
  const claim = `${file}.${randomBytes(6).toString('hex')}`
  try {
    // Others see it only when it is linked, and whole.
    await writeFile(claim, JSON.stringify({ operation, ...self }), { flag: 'wx', mode: 0o600 })
    const holder = await take(claim, file)
    return holder === undefined ? { release: once(() => rm(file, { force: true })) } : { holder }
  } finally {
    await rm(claim, { force: true })
  }
}

/** A second release would take the lock from who has it by then. */
function once(release: () => Promise<void>): () => Promise<void> {
  let released: Promise<void> | undefined
  return () => {
    released ??= release()
    return released
  }
}

/**
 * Takes the lock as soon as it is free.
 *
 * @param onWait Told once who has it, when it is not free at once; `hint` as of {@link outOfSightHint}.
 * @returns The release.
 * @throws `signal.reason`; as {@link tryLockFile}.
 */
export async function waitForLockFile(
  file: string,
  operation: string,
  {
    onWait,
    signal,
  }: {
    onWait?: ((holder: LockHolder, hint: string | undefined) => void) | undefined
    signal?: AbortSignal | undefined
  } = {},
): Promise<() => Promise<void>> {
  for (let pauseMs = FIRST_POLL_MS; ; pauseMs = Math.min(pauseMs * 2, MAX_POLL_MS)) {
    signal?.throwIfAborted()
    const attempt = await tryLockFile(file, operation)
    if ('release' in attempt) return attempt.release
    if (pauseMs === FIRST_POLL_MS) onWait?.(attempt.holder, await outOfSightHint(file, attempt.holder))
    await delay(pauseMs, undefined, signal === undefined ? {} : { signal }).catch(() => signal?.throwIfAborted())
  }
}

/**
 * @param file The lock, or mark, that names `holder`.
 * @returns What to do when it is gone and nobody here can know; undefined for one that is seen, whose end is noticed.
 */
export async function outOfSightHint(file: string, holder: ProcessIdentity): Promise<string | undefined> {
  if (!(await isOutOfSight(holder))) return undefined
  return `process ${holder.pid} is of another container (PID namespace ${holder.pidNamespace}): when it is gone, remove ${file}`
}

/** Removes what was left beside the lock by processes that were killed while they took it. */
export async function removeDeadClaims(file: string): Promise<void> {
  const folder = dirname(file)
  for (const name of await readdir(folder)) {
    if (!name.startsWith(`${basename(file)}.`)) continue
    const claim = join(folder, name)
    const maker = await lockHolder(claim)
    // One that is empty may be about to be written.
    if (maker !== undefined && maker !== nobody && !(await isAlive(maker))) await rm(claim, { force: true })
  }
}

/**
 * Links `claim` to `file`, unless a living process holds that; what a dead one held is removed first.
 *
 * Whoever removes a dead holder's file must be alone at it, or it would remove the file of one who has taken over meanwhile. So
 * it first takes a file that is named after the dead one, in this same way: who dies on it is only one more dead holder. Dead
 * ones of two boots may share that name: then one waits for the other, and nothing is removed that names somebody else.
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
      if (now !== undefined && isSameProcess(now, holder)) await rm(file, { force: true })
    } finally {
      await rm(takeover, { force: true })
    }
  }
}
