/** Bounds on what a sandbox takes of its host: defaults, and checks before anything is touched. */
import { BandSoxError, type Limits } from '@bandsox/sdk'
import { cgroupSupport } from '../vmm/cgroup.js'
import { defaultLimits } from '../vmm/limits.js'

const { processes: _, ...limits } = defaultLimits
/** Of those who name none. */
export const usualLimits: Limits = limits

/** @throws `host-unsupported` for a limit that this host cannot keep. */
export async function requireKept({ cpus }: Limits): Promise<void> {
  if (cpus === null) return
  const support = await cgroupSupport()
  if (support.usable) return
  throw new BandSoxError('host-unsupported', `cannot limit a sandbox to ${cpus} CPUs: ${support.reason}`, {
    hint: support.hint,
  })
}

/** Below, a guest's own start would take minutes. */
const MIN_CPUS = 0.05
const MAX_CPUS = 1_024
const MIN_DISK_BYTES_PER_SECOND = 64 * 1024
const MIN_DISK_OPERATIONS_PER_SECOND = 10
const MAX_RATE = 1e12

/** @throws `bad-request` naming the limit, what was given and what is allowed. */
export function checkedLimits(given: Partial<Limits>, otherwise: Limits): Limits {
  const chosen = { ...otherwise, ...withoutUndefined(given) }
  return {
    cpus: share('limits.cpus (--cpus)', chosen.cpus),
    diskBytesPerSecond: whole(
      'limits.diskBytesPerSecond (--disk-rate)',
      chosen.diskBytesPerSecond,
      MIN_DISK_BYTES_PER_SECOND,
    ),
    diskOperationsPerSecond: whole(
      'limits.diskOperationsPerSecond (--disk-iops)',
      chosen.diskOperationsPerSecond,
      MIN_DISK_OPERATIONS_PER_SECOND,
    ),
  }
}

const withoutUndefined = (limits: Partial<Limits>): Partial<Limits> =>
  Object.fromEntries(Object.entries(limits).filter(([, value]) => value !== undefined))

function whole(name: string, value: number | null, min: number): number | null {
  if (value === null || (Number.isSafeInteger(value) && value >= min && value <= MAX_RATE)) return value
  throw refuse(name, value, min, MAX_RATE, 'a whole number')
}

function share(name: string, value: number | null): number | null {
  if (value === null || (typeof value === 'number' && value >= MIN_CPUS && value <= MAX_CPUS)) return value
  throw refuse(name, value, MIN_CPUS, MAX_CPUS, 'a number')
}

const refuse = (name: string, value: unknown, min: number, max: number, what: string) =>
  new BandSoxError(
    'bad-request',
    `${name}: ${JSON.stringify(value) ?? String(value)} is not allowed; it must be ${what} from ${min} to ${max}, or null for no limit`,
  )
