/** Progress reports at a rate that a terminal can bear. */
import type { TransferOptions } from '@bandsox/sdk'

const INTERVAL_MS = 100

/** @returns A function to call with each new count; it reports at most every 100 ms, and always when `isLast`. */
export function progressReporter(
  onProgress: TransferOptions['onProgress'],
  totalBytes: number | undefined,
): (bytes: number, isLast?: boolean) => void {
  if (onProgress === undefined) return () => undefined
  let reportedAt = Number.NEGATIVE_INFINITY
  return (bytes, isLast = false) => {
    const now = performance.now()
    if (!isLast && now - reportedAt < INTERVAL_MS) return
    reportedAt = now
    onProgress({ bytes, totalBytes })
  }
}
