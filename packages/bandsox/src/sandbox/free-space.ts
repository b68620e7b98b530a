/** Whether the storage's disk has room for what is about to be made. */
import { statfsSync } from 'node:fs'
import { BandSoxError } from '@bandsox/sdk'

const MIB = 1024 * 1024

/** What a sandbox takes at once, its console and the tables of a large disk included; what it writes comes on top. */
export const SANDBOX_BYTES = 32 * MIB

/** Below, a sandbox that writes would be paused for lack of it at once. */
export const RESUME_BYTES = 8 * MIB

/** @throws `no-space`. */
export async function requireFreeSpace(folder: string, bytes: number, what: string): Promise<void> {
  const { bavail, bsize } = statfsSync(folder)
  const free = bavail * bsize
  if (free >= bytes) return
  throw new BandSoxError(
    'no-space',
    `no space for ${what}: ${folder} has ${Math.floor(free / MIB)} MiB free, and ${Math.ceil(bytes / MIB)} are needed`,
    { hint: 'free some: bandsox system df, bandsox system prune; or use another folder: --storage FOLDER' },
  )
}
