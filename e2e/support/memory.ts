/** What an operation costs this process, or another, in resident memory. */
import { readFileSync, writeFileSync } from 'node:fs'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'

const SAMPLE_MS = 20

setFlagsFromString('--expose-gc')
const collectGarbage = runInNewContext('gc') as () => void

/** @returns Bytes that this process holds on to: without what V8 lets gather before it collects, which is up to 100 MiB. */
export function heldMemory(): number {
  collectGarbage()
  const { heapUsed, external } = process.memoryUsage()
  return heapUsed + external
}

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

/**
 * What happens costs another process in resident memory.
 *
 * @returns Bytes by which its peak while `work` runs (VmHWM of proc_pid_status(5), begun anew) exceeds what it had before.
 */
export async function memoryPeakOfProcess(pid: number, work: () => Promise<unknown>): Promise<number> {
  writeFileSync(`/proc/${pid}/clear_refs`, '5') // begins VmHWM anew: proc_pid_clear_refs(5)
  const before = statusBytes(pid, 'VmRSS')
  await work()
  return statusBytes(pid, 'VmHWM') - before
}

function statusBytes(pid: number, field: 'VmRSS' | 'VmHWM'): number {
  const kib = new RegExp(`^${field}:\\s*(\\d+) kB$`, 'm').exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1]
  if (kib === undefined) throw new Error(`/proc/${pid}/status has no ${field}`)
  return Number(kib) * 1024
}
