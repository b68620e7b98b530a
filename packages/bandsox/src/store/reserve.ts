/**
 * Some disk space that is kept for the database: when guests have filled the disk, it must still be possible to write down that
 * they stand still, and to stop and delete some of them.
 */
import { rm, stat, statfs, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'

/** Some hundred transactions. */
const RESERVE_BYTES = 2 * 1024 * 1024
/** A reserve that was spent is made again when there is so much room, not before. */
const ROOMY_BYTES = 32 * 1024 * 1024

const reserveOf = (database: string): string => `${database}.reserve`

/** Makes the reserve, where there is none, and room for it. */
export async function keepReserve(database: string): Promise<void> {
  const file = reserveOf(database)
  if (await isThere(file)) return
  const { bavail, bsize } = await statfs(path.dirname(file))
  if (bavail * bsize < ROOMY_BYTES) return
  // Written and not just made long: a sparse file reserves nothing.
  await writeFile(file, Buffer.alloc(RESERVE_BYTES), { mode: 0o600 })
}

/** @returns Whether there was one to give up. */
export async function spendReserve(database: string): Promise<boolean> {
  const file = reserveOf(database)
  if (!(await isThere(file))) return false
  await rm(file, { force: true })
  return true
}

async function isThere(file: string): Promise<boolean> {
  try {
    await stat(file)
    return true
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return false
    throw error
  }
}
