/** Reads the end of a log that a shim keeps: one that has reached its bound goes on in a new file, and the one before is beside it. */
import { open } from 'node:fs/promises'
import { isSystemError } from '@bandsox/sdk'

/** @returns At most `maxBytes`, from the middle of a line where there is more; undefined where there is no such log. */
export async function readTail(log: string, maxBytes: number): Promise<string | undefined> {
  const current = await tailOf(log, maxBytes)
  const missing = maxBytes - (current?.length ?? 0)
  const before = missing === 0 ? undefined : await tailOf(`${log}.1`, missing)
  if (current === undefined && before === undefined) return undefined
  return Buffer.concat([before ?? Buffer.alloc(0), current ?? Buffer.alloc(0)]).toString('utf8')
}

async function tailOf(path: string, maxBytes: number): Promise<Buffer | undefined> {
  try {
    const file = await open(path)
    try {
      const { size } = await file.stat()
      const buffer = Buffer.alloc(Math.min(size, maxBytes))
      const { bytesRead } = await file.read(buffer, 0, buffer.length, size - buffer.length)
      return buffer.subarray(0, bytesRead)
    } finally {
      await file.close()
    }
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}
