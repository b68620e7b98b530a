/** Reads what Firecracker says of itself: a line of JSON each minute, and when it is asked. */
import { z } from 'zod'
import { readTail } from '../../process/read-tail.js'

/** A line has some 6 KB, and is half trusted like all that a VMM says. */
const TAIL_BYTES = 256 * 1024
const lineSchema = z.record(z.string(), z.unknown()).and(z.object({ utc_timestamp_ms: z.number() }))

/** @returns The last whole line, and when it was written, in milliseconds since 1970; undefined where there is none. */
export async function lastMetrics(log: string): Promise<{ at: number; metrics: Record<string, unknown> } | undefined> {
  const lines = ((await readTail(log, TAIL_BYTES)) ?? '').split('\n').slice(0, -1)
  for (const line of lines.reverse()) {
    const parsed = lineSchema.safeParse(parseOrUndefined(line))
    if (parsed.success) return { at: parsed.data.utc_timestamp_ms, metrics: parsed.data }
  }
  return undefined
}

function parseOrUndefined(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined // the first of the tail is half a line
  }
}
