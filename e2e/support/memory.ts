/** What an operation costs this process in resident memory. */

const SAMPLE_MS = 20

/** @returns Bytes by which the peak while `work` runs exceeds what was there before. */
export async function memoryPeakOf(work: () => Promise<unknown>): Promise<number> {
  globalThis.gc?.()
  const before = process.memoryUsage().rss
  let peak = before
  const watch = setInterval(() => {
    peak = Math.max(peak, process.memoryUsage().rss)
  }, SAMPLE_MS)
  try {
    await work()
  } finally {
    clearInterval(watch)
  }
  return peak - before
}
