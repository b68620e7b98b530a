/** What the agent's tools say at their end: one line of JSON on standard error (docs/files.md, PROTOCOL.md section 7). */
import { BandSoxError, type CopyResult, printableLine } from '@bandsox/sdk'
import { z } from 'zod'
import { guestFault } from '../../guest/guest-fault.js'

/** Of a report with the most names that it may hold. */
const MAX_REPORT_BYTES = 1024 * 1024
const MAX_SKIPPED = 100
const MAX_PATH = 5_000

const count = z.number().int().min(0).max(Number.MAX_SAFE_INTEGER)
const reportSchema = z.object({
  files: count,
  folders: count,
  links: count,
  others: count,
  bytes: count,
  streamBytes: count,
  xxh64: z.string().regex(/^[0-9a-f]{16}$/),
  skipped: z.array(z.object({ path: z.string().max(MAX_PATH), reason: z.string().max(MAX_PATH) })).max(MAX_SKIPPED),
  skippedCount: count,
})
const failureSchema = z.object({ error: z.object({ code: z.string().max(64), message: z.string().max(4_096) }) })

export type ToolReport = z.infer<typeof reportSchema>
export type CopyCounts = Pick<CopyResult, 'files' | 'folders' | 'links' | 'bytes' | 'skipped' | 'skippedCount'>

/** Gathers what a tool says, within a bound. */
export class ReportReader {
  #parts: Buffer[] = []
  #bytes = 0

  add(data: Uint8Array): void {
    this.#bytes += data.length
    if (this.#bytes > MAX_REPORT_BYTES)
      throw new BandSoxError('guest-protocol', `the guest's copying tool says more than ${MAX_REPORT_BYTES} bytes`)
    this.#parts.push(Buffer.from(data))
  }

  /**
   * @param ended How the tool ended, for one that said nothing.
   * @throws What the tool could not do, as an error of ours; `guest-protocol` for what is no report.
   */
  take(ended: { exitCode: number | null; signal: string | null }): ToolReport {
    const text = Buffer.concat(this.#parts).toString('utf8')
    const line = text.trimEnd().split('\n').at(-1) ?? ''
    const value = parsed(line)
    const failure = failureSchema.safeParse(value)
    if (failure.success) throw guestFault(failure.data.error)
    const report = reportSchema.safeParse(value)
    if (report.success && ended.exitCode === 0) return report.data
    if (ended.signal !== null || (ended.exitCode !== 0 && value === undefined)) {
      const how = ended.signal === null ? `with ${ended.exitCode}` : `by ${ended.signal}`
      throw new BandSoxError(
        'command-failed',
        `in the guest: the copying tool was ended ${how}: ${printableLine(text).slice(0, 500)}`,
      )
    }
    throw new BandSoxError(
      'guest-protocol',
      `the guest's copying tool ended without a report: ${printableLine(line).slice(0, 200)}`,
    )
  }
}

function parsed(line: string): unknown {
  try {
    return JSON.parse(line)
  } catch {
    return undefined // the caller says what came in its place
  }
}

/** @throws `checksum-mismatch`. */
export function requireSameStream(
  report: ToolReport,
  own: { streamBytes: number; xxh64: string },
  about: string,
): void {
  if (report.streamBytes === own.streamBytes && report.xxh64 === own.xxh64) return
  throw new BandSoxError(
    'checksum-mismatch',
    `cannot ${about}: the guest has ${report.streamBytes} bytes with checksum ${report.xxh64}, the host ${own.streamBytes} with ${own.xxh64}`,
  )
}
