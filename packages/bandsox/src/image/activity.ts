/** Keeps what adds images and what removes them apart, across processes: many may fetch at once, one may clean up, not both. */
import { randomBytes } from 'node:crypto'
import { readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { identify, isAlive } from '../process/identity.js'
import { lockHolder, tryLockFile, waitForLockFile } from '../process/lock-file.js'

const CLEANING = 'cleaning.lock'
/** `fetching-<pid>-<start time>-<random>`. */
const FETCHING = /^fetching-(\d+)-(\d+)-/

/**
 * To be held while blobs, disks and records come to be that nothing refers to yet.
 *
 * The mark is set first and the lock looked at then; who cleans up does it the other way round, so that one of the two always
 * sees the other.
 *
 * @returns The release.
 */
export async function beginFetching(locks: string, signal?: AbortSignal): Promise<() => Promise<void>> {
  const self = await identify(process.pid)
  const mark = join(locks, `fetching-${process.pid}-${self?.startTime}-${randomBytes(4).toString('hex')}`)
  for (;;) {
    await writeFile(mark, '')
    const cleaning = await lockHolder(join(locks, CLEANING))
    if (cleaning === undefined || !(await isAlive(cleaning))) return () => rm(mark, { force: true })
    await rm(mark, { force: true })
    await (await waitForLockFile(join(locks, CLEANING), 'wait', { signal }))()
  }
}

/** @returns The release, or undefined while anybody fetches or cleans up. */
export async function tryCleaning(locks: string): Promise<(() => Promise<void>) | undefined> {
  const attempt = await tryLockFile(join(locks, CLEANING), 'clean up images')
  if ('holder' in attempt) return undefined
  if (!(await isAnyFetching(locks))) return attempt.release
  await attempt.release()
  return undefined
}

async function isAnyFetching(locks: string): Promise<boolean> {
  for (const name of await readdir(locks)) {
    const [, pid, startTime] = FETCHING.exec(name) ?? []
    if (pid === undefined) continue
    if (await isAlive({ pid: Number(pid), startTime: Number(startTime) })) return true
    await rm(join(locks, name), { force: true })
  }
  return false
}
