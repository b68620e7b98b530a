/** Whether this host has memory for one more running sandbox. */
import { readFileSync } from 'node:fs'
import { totalmem } from 'node:os'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import type { Admission } from '../store/sandbox-store.js'

const MIB = 1024 * 1024
/** Memory of the control group that we are in: of a container that has less than its host. cgroup v2, v1. */
const GROUP_LIMITS = ['/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes']

/** What this host, or the container that we are in, has in MiB. */
export function hostMemoryMib(): number {
  return Math.floor(Math.min(totalmem(), ...GROUP_LIMITS.map(readLimit)) / MIB)
}

/** "max", and numbers beyond any machine, mean none. */
function readLimit(file: string): number {
  try {
    const bytes = Number(readFileSync(file, 'utf8').trim())
    return Number.isNaN(bytes) ? Number.POSITIVE_INFINITY : bytes
  } catch (error) {
    if (isSystemError(error, 'ENOENT') || isSystemError(error, 'EACCES')) return Number.POSITIVE_INFINITY
    throw error
  }
}

/**
 * Refuses a sandbox whose memory, with that of all that run, is more than the host may give.
 *
 * @param overcommit Share of the host's memory that may be given.
 */
export function admitWithin(memoryMib: number, overcommit: number): Admission {
  const boundMib = Math.floor(memoryMib * overcommit)
  return (running, wanted) => {
    const takenMib = running.filter(({ id }) => id !== wanted.id).reduce((sum, each) => sum + each.memoryMib, 0)
    if (takenMib + wanted.memoryMib <= boundMib) return
    throw new BandSoxError(
      'host-resource',
      `no memory for a sandbox of ${wanted.memoryMib} MiB: ${running.length} running ones have ${takenMib} of ${boundMib} MiB (${overcommit} × this host's ${memoryMib} MiB)`,
      {
        hint:
          wanted.memoryMib > boundMib
            ? 'give it less (--mem), or raise host.memoryOvercommit in the configuration'
            : 'stop one, give it less (--mem), or raise host.memoryOvercommit in the configuration',
      },
    )
  }
}
