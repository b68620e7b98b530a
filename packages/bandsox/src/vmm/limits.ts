/** How much of the host one machine may take, whichever VMM makes it. */

export interface MachineLimits {
  /** Read and written together, over all of its disks (on Firecracker: each of them); may be taken at once after a second's rest. null: no limit. */
  diskBytesPerSecond: number | null
  /** Requests, as above. */
  diskOperationsPerSecond: number | null
  /** Processors' worth of time for VMM and vsock daemon, such as 0.5; null: no limit. Needs a control group: `cgroupSupport`. */
  cpus: number | null
  /**
   * Processes and threads of the host for VMM and vsock daemon, at least `MIN_PROCESSES`; null: a number that no machine reaches.
   * Needs a control group, or root.
   */
  processes: number | null
}

/** What can be changed while the machine runs. */
export type LiveLimits = Omit<MachineLimits, 'processes'>

/** QEMU has up to 64 threads for its disks, one per processor and some more; where it cannot have one, it aborts. */
export const MIN_PROCESSES = 128

/** The earlier BandSox's: without a limit, several VMs locked up the host's block layer. */
export const defaultLimits: MachineLimits = {
  diskBytesPerSecond: 200 * 1024 * 1024,
  diskOperationsPerSecond: 5_000,
  cpus: null,
  processes: null,
}
