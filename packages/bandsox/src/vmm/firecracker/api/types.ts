/**
 * What Firecracker's API takes and answers, by the names and shapes that it has on the wire.
 *
 * Written from the description that the Firecracker project publishes, as of version 1.17, for what a manager of machines needs.
 * Left out: drives of vhost-user, pmem, CPU templates over the API, memory that is plugged in later, runs of free page hinting, and
 * deprecated fields.
 * What came later than 1.12 says since when; an earlier Firecracker refuses a field that it does not know.
 *
 * Paths are Firecracker's: relative to its working directory, and inside its jail. Fields that are `undefined` are not sent.
 *
 * @see https://github.com/firecracker-microvm/firecracker/blob/main/src/firecracker/swagger/firecracker.yaml
 */

/** A bucket that is full at first, is emptied by use, and refills evenly. */
export interface TokenBucket {
  /** Most that it holds: bytes, or operations. 0: no limit, also in place of one. */
  size: number
  /** Milliseconds in which an empty bucket gets full: `size / refill_time` is the lasting rate. 0: no limit. */
  refill_time: number
  /** On top of `size`, once. Default 0. */
  one_time_burst?: number
}

/** Both hold at once. What is left out has no limit, or in an update keeps the one it has. */
export interface RateLimiter {
  /** Tokens are bytes. */
  bandwidth?: TokenBucket
  /** Tokens are operations. */
  ops?: TokenBucket
}

export type CpuTemplate = 'None' | 'C3' | 'T2' | 'T2S' | 'T2CL' | 'T2A' | 'V1N1'

/** Replaces the whole: what is left out gets its default. */
export interface MachineConfiguration {
  /** 1 to 32; with `smt`, 1 or even. */
  vcpu_count: number
  /** With `2M` pages, even. */
  mem_size_mib: number
  /** Siblings on one core. x86 only. Default false. */
  smt?: boolean
  /** Deprecated by Firecracker. Default `None`. */
  cpu_template?: CpuTemplate
  /** Needed for snapshots of the kind `Diff`; costs the guest speed. Default false. */
  track_dirty_pages?: boolean
  /** `2M` comes from the host's hugetlbfs pool, which must have room. `Transparent` since 1.17. Default `None`. */
  huge_pages?: 'None' | 'Transparent' | '2M'
}

export interface BootSource {
  /** On x86_64 an uncompressed ELF, or since 1.17 a bzImage. Opened when it is put. */
  kernel_image_path: string
  initrd_path?: string
  /** Firecracker adds `pci=off` and its devices. */
  boot_args?: string
}

export interface Drive {
  /** Letters, digits and `_`. */
  drive_id: string
  path_on_host: string
  /** The kernel gets `root=` of it. */
  is_root_device: boolean
  is_read_only: boolean
  /** Of the root partition, instead of the whole drive. Only with `is_root_device`. */
  partuuid?: string
  /** `Unsafe`: the guest's flushes are not passed on to the host's disk. Default `Unsafe`. */
  cache_type?: 'Unsafe' | 'Writeback'
  /** `Async` is io_uring. Default `Sync`. */
  io_engine?: 'Sync' | 'Async'
  rate_limiter?: RateLimiter
}

/** While the machine runs. */
export interface DriveUpdate {
  drive_id: string
  /** Another file, or the same one after its size has changed. */
  path_on_host?: string
  rate_limiter?: RateLimiter
}

export interface NetworkInterface {
  /** Letters, digits and `_`. */
  iface_id: string
  /** Name of the tap. One that does not exist is made, where Firecracker may, and then leads nowhere. */
  host_dev_name: string
  guest_mac?: string
  /** Told to the guest: 68 to 65535 bytes. Since 1.16. */
  mtu?: number
  /** What the guest receives. */
  rx_rate_limiter?: RateLimiter
  /** What the guest sends. */
  tx_rate_limiter?: RateLimiter
}

/** While the machine runs. */
export interface NetworkInterfaceUpdate {
  iface_id: string
  rx_rate_limiter?: RateLimiter
  tx_rate_limiter?: RateLimiter
}

export interface Vsock {
  /** 3 or more. Firecracker also takes 2, which is the host's own. */
  guest_cid: number
  /** Bound at once: nothing may be there, and it holds 107 bytes at most. Guests reach the host at `<uds_path>_<port>`. */
  uds_path: string
}

export interface Entropy {
  /** Default: no limit. */
  rate_limiter?: RateLimiter
}

export interface Balloon {
  /** What is taken from the guest. */
  amount_mib: number
  /** Whether the guest takes memory back before it would have to kill. */
  deflate_on_oom: boolean
  /** 0: no statistics, and they cannot be had later. Default 0. */
  stats_polling_interval_s?: number
  /** Since 1.14. */
  free_page_hinting?: boolean
  /** The guest gives back what it frees, by itself. Since 1.14. */
  free_page_reporting?: boolean
}

export interface BalloonUpdate {
  amount_mib: number
}

/** Not between 0 and another number: that is decided before the start. */
export interface BalloonStatisticsUpdate {
  stats_polling_interval_s: number
}

/** The first four are Firecracker's, the others the guest's own word, as far as its kernel has them: 64 bits, and any value. */
export interface BalloonStatistics {
  /** Pages of 4 KiB. */
  target_pages: number
  actual_pages: number
  target_mib: number
  actual_mib: number
  /** Bytes. */
  swap_in?: number
  swap_out?: number
  major_faults?: number
  minor_faults?: number
  /** Bytes that nothing uses. */
  free_memory?: number
  /** Bytes. */
  total_memory?: number
  /** Bytes that new programs could have without swapping. */
  available_memory?: number
  /** Bytes of the page cache. */
  disk_caches?: number
  hugetlb_allocations?: number
  hugetlb_failures?: number
  oom_kill?: number
  alloc_stall?: number
  async_scan?: number
  direct_scan?: number
  async_reclaim?: number
  direct_reclaim?: number
}

export interface Logger {
  /** A file or FIFO that exists. Without it, the log goes to stdout, between the lines of the console. */
  log_path?: string
  /** Default `Info`. */
  level?: 'Off' | 'Error' | 'Warning' | 'Info' | 'Debug' | 'Trace'
  show_level?: boolean
  show_log_origin?: boolean
  /** Only what this module of Firecracker logs, such as `api_server::request`. */
  module?: string
}

/** Once per process: a second one is refused. */
export interface Metrics {
  /** A file or FIFO that exists; a line of JSON at every flush, which Firecracker does by itself each minute. */
  metrics_path: string
  /** The machine's id in each line. Since 1.17. */
  emit_id?: boolean
  /** In each line. Since 1.17. */
  properties?: Record<string, string>
}

export interface MmdsConfiguration {
  /** Default `V1`, which is deprecated: any program in the guest that can be made to fetch an address reads it. */
  version?: 'V1' | 'V2'
  /** Ids of the interfaces over which the guest reaches it. */
  network_interfaces: string[]
  /** Link-local. Default 169.254.169.254. */
  ipv4_address?: string
  /** Answers as EC2 does, whatever is asked for. Since 1.13. */
  imds_compat?: boolean
}

/** An object of JSON, as the guest sees it. */
export type MmdsContents = Record<string, unknown>

/** Since 1.14. */
export interface Serial {
  /** A file or FIFO that exists. Without it, stdout. */
  serial_out_path?: string
  /** Tokens are bytes. What is more is dropped, and counted in the metrics. Since 1.16. */
  rate_limiter?: TokenBucket
}

export type ActionType = 'InstanceStart' | 'SendCtrlAltDel' | 'FlushMetrics'

export type VmState = 'Paused' | 'Resumed'

export interface SnapshotCreation {
  /** `Diff`: what has changed since the last one, in a sparse file as large as the memory. Default `Full`. */
  snapshot_type?: 'Full' | 'Diff'
  /** For the state of machine and devices. */
  snapshot_path: string
  mem_file_path: string
}

export interface NetworkOverride {
  iface_id: string
  host_dev_name: string
}

/** Into a process to which nothing has been put but logger, metrics and serial console. */
export interface SnapshotLoad {
  snapshot_path: string
  mem_backend: {
    /** `File` is mapped, and must stay as it is while the machine lives; `Uffd` asks a process that listens on a socket. */
    backend_type: 'File' | 'Uffd'
    backend_path: string
  }
  /** As in {@link MachineConfiguration}. Since 1.13. Default false. */
  track_dirty_pages?: boolean
  /** The same, until 1.12. */
  enable_diff_snapshots?: boolean
  /** Default false: it stays paused. */
  resume_vm?: boolean
  /** Taps to take instead of those in the snapshot. Since 1.12. */
  network_overrides?: NetworkOverride[]
  /** Socket to bind instead of the one in the snapshot. Since 1.16. */
  vsock_override?: { uds_path: string }
  /** The guest's clock goes on from the host's time instead of the snapshot's. x86_64 only. Since 1.16. Default false. */
  clock_realtime?: boolean
  /** `2M` needs the backend `Uffd`. Since 1.17. Default `Snapshot`: as it was. */
  huge_pages?: 'Snapshot' | 'None' | 'Transparent' | '2M'
}

export interface InstanceInfo {
  /** `--id`. */
  id: string
  state: 'Not started' | 'Running' | 'Paused'
  vmm_version: string
  app_name: string
}

/**
 * For `--config-file`. It starts the machine at once.
 *
 * There is no {@link Serial} in it: with a file, the console is stdout, and may only be sent elsewhere over the API.
 */
export interface VmConfiguration {
  'boot-source': BootSource
  drives: Drive[]
  'machine-config'?: MachineConfiguration
  /** The path of a CPU template. */
  'cpu-config'?: string
  'network-interfaces'?: NetworkInterface[]
  vsock?: Vsock
  entropy?: Entropy
  balloon?: Balloon
  logger?: Logger
  metrics?: Metrics
  'mmds-config'?: MmdsConfiguration
}

/** What the machine has. Of one that was loaded from a snapshot, the kernel's path is empty. Log and metrics are not told. */
export type ReportedVmConfiguration = Omit<VmConfiguration, 'logger' | 'metrics' | 'cpu-config'>
