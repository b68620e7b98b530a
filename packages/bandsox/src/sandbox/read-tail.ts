/** Reads the end of a log. */
import { open } from 'node:fs/promises'
import { isSystemError } from '@bandsox/sdk'

/** @returns At most `maxBytes`, from the middle of a line where there is more; undefined where there is no such file. */
export async function readTail(path: string, maxBytes: number): Promise<string | undefined> {
  try {
    const file = await open(path)
    try {
      const { size } = await file.stat()
      const buffer = Buffer.alloc(Math.min(size, maxBytes))
      const { bytesRead } = await file.read(buffer, 0, buffer.length, size - buffer.length)
      return buffer.toString('utf8', 0, bytesRead)
    } finally {
      await file.close()
    }
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}
