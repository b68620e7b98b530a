/** Schemas of what Firecracker answers. A guest that has broken out of its machine might answer in its place. */
import { z } from 'zod'
import type {
  Balloon,
  BalloonStatistics,
  BootSource,
  Drive,
  Entropy,
  InstanceInfo,
  MachineConfiguration,
  MmdsConfiguration,
  MmdsContents,
  NetworkInterface,
  RateLimiter,
  ReportedVmConfiguration,
  TokenBucket,
  Vsock,
} from './types.js'

const count = z.int().nonnegative()
const text = z.string().exactOptional()
const flag = z.boolean().exactOptional()

const tokenBucket: z.ZodType<TokenBucket> = z.object({
  size: count,
  refill_time: count,
  one_time_burst: count.exactOptional(),
})

const rateLimiter: z.ZodType<RateLimiter> = z.object({
  bandwidth: z.exactOptional(tokenBucket),
  ops: z.exactOptional(tokenBucket),
})

export const instanceInfoSchema: z.ZodType<InstanceInfo> = z.object({
  id: z.string(),
  state: z.enum(['Not started', 'Running', 'Paused']),
  vmm_version: z.string(),
  app_name: z.string(),
})

export const versionSchema = z.object({ firecracker_version: z.string() })

export const machineConfigurationSchema: z.ZodType<MachineConfiguration> = z.object({
  vcpu_count: count,
  mem_size_mib: count,
  smt: flag,
  cpu_template: z.enum(['None', 'C3', 'T2', 'T2S', 'T2CL', 'T2A', 'V1N1']).exactOptional(),
  track_dirty_pages: flag,
  huge_pages: z.enum(['None', 'Transparent', '2M']).exactOptional(),
})

const bootSource: z.ZodType<BootSource> = z.object({
  kernel_image_path: z.string(),
  initrd_path: text,
  boot_args: text,
})

const drive: z.ZodType<Drive> = z.object({
  drive_id: z.string(),
  path_on_host: z.string(),
  is_root_device: z.boolean(),
  is_read_only: z.boolean(),
  partuuid: text,
  cache_type: z.enum(['Unsafe', 'Writeback']).exactOptional(),
  io_engine: z.enum(['Sync', 'Async']).exactOptional(),
  rate_limiter: z.exactOptional(rateLimiter),
})

const networkInterface: z.ZodType<NetworkInterface> = z.object({
  iface_id: z.string(),
  host_dev_name: z.string(),
  guest_mac: text,
  mtu: count.exactOptional(),
  rx_rate_limiter: z.exactOptional(rateLimiter),
  tx_rate_limiter: z.exactOptional(rateLimiter),
})

const vsock: z.ZodType<Vsock> = z.object({ guest_cid: count, uds_path: z.string() })

const entropy: z.ZodType<Entropy> = z.object({ rate_limiter: z.exactOptional(rateLimiter) })

export const balloonSchema: z.ZodType<Balloon> = z.object({
  amount_mib: count,
  deflate_on_oom: z.boolean(),
  stats_polling_interval_s: count.exactOptional(),
  free_page_hinting: flag,
  free_page_reporting: flag,
})

/** Not `count`: a guest may report any number of 64 bits, and must not be able to have the whole answer refused. */
const reported = z.number().nonnegative().exactOptional()

export const balloonStatisticsSchema: z.ZodType<BalloonStatistics> = z.object({
  target_pages: count,
  actual_pages: count,
  target_mib: count,
  actual_mib: count,
  swap_in: reported,
  swap_out: reported,
  major_faults: reported,
  minor_faults: reported,
  free_memory: reported,
  total_memory: reported,
  available_memory: reported,
  disk_caches: reported,
  hugetlb_allocations: reported,
  hugetlb_failures: reported,
  oom_kill: reported,
  alloc_stall: reported,
  async_scan: reported,
  direct_scan: reported,
  async_reclaim: reported,
  direct_reclaim: reported,
})

const mmdsConfiguration: z.ZodType<MmdsConfiguration> = z.object({
  version: z.enum(['V1', 'V2']).exactOptional(),
  network_interfaces: z.array(z.string()),
  ipv4_address: text,
  imds_compat: flag,
})

export const mmdsContentsSchema: z.ZodType<MmdsContents> = z.record(z.string(), z.unknown())

export const vmConfigurationSchema: z.ZodType<ReportedVmConfiguration> = z.object({
  'boot-source': bootSource,
  drives: z.array(drive),
  'machine-config': z.exactOptional(machineConfigurationSchema),
  'network-interfaces': z.array(networkInterface).exactOptional(),
  vsock: z.exactOptional(vsock),
  entropy: z.exactOptional(entropy),
  balloon: z.exactOptional(balloonSchema),
  'mmds-config': z.exactOptional(mmdsConfiguration),
})

/** `error` is what its HTTP server says by itself, before anything of Firecracker's has seen the call. */
export const refusalSchema = z.union([
  z.object({ fault_message: z.string() }).transform((body) => body.fault_message),
  z.object({ error: z.string() }).transform((body) => body.error),
])
