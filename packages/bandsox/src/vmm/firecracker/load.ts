/** Tells a Firecracker that has just been started what to load. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { describeExit, type VmmExit } from '../../process/shim.js'
import type { LiveLimits } from '../limits.js'
import type { LoadOptions } from '../vmm.js'
import { FirecrackerFault } from './api/fault.js'
import type { SnapshotLoad } from './api/types.js'
import { folderFiles } from './configuration.js'
import type { FirecrackerMachine } from './machine.js'
import { capabilitiesOf, tracksDirtyPagesByName, type Version } from './version.js'

const OWN_END_MS = 200
const KILL_TIMEOUT_MS = 10_000

/** @throws `vmm-control` with what Firecracker says, `vmm-failed` when it ended, `signal.reason`; nothing is left then. */
export async function loadState(
  machine: FirecrackerMachine,
  snapshot: SnapshotLoad,
  limits: LiveLimits | undefined,
  signal: AbortSignal | undefined,
): Promise<void> {
  try {
    await machine.load(snapshot, signal)
    // Processors are limited by its control group already.
    if (limits !== undefined) await machine.limitDisks(limits)
  } catch (error) {
    const exit = await end(machine).catch(() => undefined) // the error is the news; an end that failed is found at the next look
    // A refusal says all; a Firecracker that ended without an answer does not.
    if (error instanceof FirecrackerFault || exit === undefined || signal?.aborted) throw error
    throw new BandSoxError('vmm-failed', `${messageOf(error)}; ${describeExit(exit)}`, {
      cause: error,
      hint: 'see firecracker.log and vmm.log in the VM’s directory',
    })
  }
}

/** One that could not load ends by itself, mostly; it is good for nothing either way. */
async function end(machine: FirecrackerMachine): Promise<VmmExit | undefined> {
  try {
    const exit = await machine.exitedWithin(OWN_END_MS)
    if (exit !== undefined) return exit
    await machine.signal('SIGKILL')
    return await machine.exitedWithin(KILL_TIMEOUT_MS)
  } finally {
    machine.close()
  }
}

/** What a loaded machine is to be told of its disks, whose limits in the state were another machine's. @returns undefined for nothing. */
export function changedLimits(limits: LiveLimits, saved: LiveLimits | undefined): LiveLimits | undefined {
  const isSame =
    limits.diskBytesPerSecond === saved?.diskBytesPerSecond &&
    limits.diskOperationsPerSecond === saved.diskOperationsPerSecond
  return isSame ? undefined : limits
}

/**
 * Paths are those of the folder that it runs in, so vsock needs no override: its socket is beside them.
 *
 * @throws `host-unsupported` for what this release cannot do.
 */
export function snapshotLoad(version: Version, options: LoadOptions): SnapshotLoad {
  const { networkOverrides, clockRealtime } = capabilitiesOf(version)
  const overrides = Object.entries(options.networkOverrides ?? {})
  if (overrides.length > 0 && !networkOverrides) throw tooOld('give a loaded machine other TAPs', '1.12')
  if (options.clockRealtime === true && !clockRealtime) throw tooOld("give a loaded machine the host's time", '1.16')
  return {
    snapshot_path: folderFiles.devices,
    mem_backend: { backend_type: 'File', backend_path: folderFiles.memory },
    resume_vm: options.resume ?? true,
    ...(options.trackDirtyPages === true && {
      [tracksDirtyPagesByName(version) ? 'track_dirty_pages' : 'enable_diff_snapshots']: true,
    }),
    ...(overrides.length > 0 && {
      network_overrides: overrides.map(([iface_id, host_dev_name]) => ({ iface_id, host_dev_name })),
    }),
    ...((options.clockRealtime ?? clockRealtime) && { clock_realtime: true }),
  }
}

const tooOld = (what: string, since: string): BandSoxError =>
  new BandSoxError('host-unsupported', `this Firecracker cannot ${what}`, {
    hint: `use Firecracker ${since} or newer: bandsox init`,
  })
