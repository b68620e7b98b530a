/** What a VMM has logged, where it keeps a log of its own. Half trusted, as all that a VMM says. */
import { open } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError, printableLine } from '@bandsox/sdk'

/** In a VM's directory, bounded by the shim. */
const LOG = 'firecracker.log'
const TAIL_BYTES = 16 * 1024
const MAX_LINES = 40

/** @returns The last lines, oldest first; undefined where there is no log. */
export async function vmmLog(directory: string): Promise<string[] | undefined> {
  try {
    const file = await open(path.join(directory, LOG))
    try {
      const { size } = await file.stat()
      const buffer = Buffer.alloc(Math.min(size, TAIL_BYTES))
      const { bytesRead } = await file.read(buffer, 0, buffer.length, size - buffer.length)
      const lines = buffer.toString('utf8', 0, bytesRead).split('\n')
      return lines
        .slice(size > TAIL_BYTES ? 1 : 0) // the first may be half a line
        .filter((line) => line !== '')
        .slice(-MAX_LINES)
        .map(printableLine)
    } finally {
      await file.close()
    }
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}
