/** Keeps what adds images and what removes them apart, across processes: many may fetch at once, one may clean up, not both. */
import { randomBytes } from 'node:crypto'
import { rmSync, writeFileSync } from 'node:fs'
import { readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { identifySelf, identityText, isAlive, type ProcessIdentity, parseIdentityText } from '../process/identity.js'
import { lockHolder, outOfSightHint, removeDeadClaims, tryLockFile, waitForLockFile } from '../process/lock-file.js'

const CLEANING = 'cleaning.lock'
/** And then `<identity>-<random>`. */
const FETCHING = 'fetching-'

/**
 * To be held while blobs, disks and records come to be that nothing refers to yet.
 *
 * The mark is set first and the lock looked at then; who cleans up does it the other way round, so that one of the two always
 * sees the other.
 *
 * @returns The release.
 * @throws `signal.reason`; `internal` when /proc is not readable; `artifact-damaged` for a lock.
 */
export async function beginFetching(locks: string, signal?: AbortSignal): Promise<() => Promise<void>> {
  const self = identityText(await identifySelf())
  const mark = join(locks, `${FETCHING}${self}-${randomBytes(4).toString('hex')}`)
  const release = async () => rmSync(mark, { force: true })
  for (;;) {
    let isFree = false
    try {
      writeFileSync(mark, '')
      const cleaning = await lockHolder(join(locks, CLEANING))
      isFree = cleaning === undefined || !(await isAlive(cleaning))
      if (isFree) return release
    } finally {
      if (!isFree) await release()
    }
    await (await waitForLockFile(join(locks, CLEANING), 'wait', { signal }))()
  }
}

/**
 * @param onOutOfSight Told what to do when who fetches or cleans up is of another container, and may be gone without our knowing.
 * @returns The release, or undefined while anybody fetches or cleans up.
 */
export async function tryCleaning(
  locks: string,
  onOutOfSight?: (hint: string) => void,
): Promise<(() => Promise<void>) | undefined> {
  const refuse = async (file: string, holder: ProcessIdentity) => {
    const hint = await outOfSightHint(file, holder)
    if (hint !== undefined) onOutOfSight?.(hint)
    return undefined
  }
  const lock = join(locks, CLEANING)
  const attempt = await tryLockFile(lock, 'clean up images')
  if ('holder' in attempt) return await refuse(lock, attempt.holder)
  let isFree = false
  try {
    const fetching = await findFetching(locks)
    if (fetching !== undefined) return await refuse(fetching.mark, fetching.maker)
    await removeDeadClaims(lock)
    isFree = true
    return attempt.release
  } finally {
    if (!isFree) await attempt.release()
  }
}

/** One that fetches; what dead ones left is removed. */
async function findFetching(locks: string): Promise<{ mark: string; maker: ProcessIdentity } | undefined> {
  for (const name of await readdir(locks)) {
    const maker = name.startsWith(FETCHING) ? parseIdentityText(name.slice(FETCHING.length)) : undefined
    if (maker === undefined) continue
    const mark = join(locks, name)
    if (await isAlive(maker)) return { mark, maker }
    await rm(mark, { force: true })
  }
  return undefined
}
