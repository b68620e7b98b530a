/** Reads what Firecracker says of itself: a line of JSON each minute, and when it is asked. */
import { open } from 'node:fs/promises'
import { isSystemError } from '@bandsox/sdk'
import { z } from 'zod'

/** A line has some 6 KB, and is half trusted like all that a VMM says. */
const TAIL_BYTES = 256 * 1024
const lineSchema = z.record(z.string(), z.unknown()).and(z.object({ utc_timestamp_ms: z.number() }))

/** @returns The last whole line, and when it was written, in milliseconds since 1970; undefined where there is none. */
export async function lastMetrics(log: string): Promise<{ at: number; metrics: Record<string, unknown> } | undefined> {
  const lines = (await tailOf(log)).split('\n').slice(0, -1)
  for (const line of lines.reverse()) {
    const parsed = lineSchema.safeParse(parseOrUndefined(line))
    if (parsed.success) return { at: parsed.data.utc_timestamp_ms, metrics: parsed.data }
  }
  return undefined
}

async function tailOf(log: string): Promise<string> {
  try {
    const file = await open(log)
    try {
      const { size } = await file.stat()
      const buffer = Buffer.alloc(Math.min(size, TAIL_BYTES))
      const { bytesRead } = await file.read(buffer, 0, buffer.length, size - buffer.length)
      return buffer.toString('utf8', 0, bytesRead)
    } finally {
      await file.close()
    }
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return ''
    throw error
  }
}

function parseOrUndefined(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined // the first of the tail is half a line
  }
}
