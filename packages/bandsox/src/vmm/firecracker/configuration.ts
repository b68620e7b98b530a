/** A machine as Firecracker is told of it: its configuration file, its arguments. Pure. */
import { CONSOLE_UART, kernelCommandLine } from '../kernel-command-line.js'
import type { LiveLimits } from '../limits.js'
import type { MachineSpec } from '../vmm.js'
import type { Drive, RateLimiter, TokenBucket, VmConfiguration } from './api/types.js'

/**
 * Names in the folder that Firecracker runs in, which in a jail is its root. All are relative, so that a state loaded elsewhere finds
 * its own beside a machine that still runs.
 */
export const folderFiles = {
  program: 'firecracker',
  configuration: 'vm.json',
  api: 'api.sock',
  vsock: 'v.sock',
  log: 'log',
  metrics: 'metrics',
  devices: 'devices',
  memory: 'memory',
} as const

/** In the VM's directory, drained from the above. */
export const FIRECRACKER_LOG = 'firecracker.log'
export const METRICS_LOG = 'metrics.log'

/** The disks, in the guest's order. */
const ROOT = 'root'
const OVERLAY = 'overlay'

/**
 * - `reboot=k`: a reset by the keyboard's controller is what ends Firecracker, and a power-off nothing, so the agent resets.
 * - `8250`: there is one UART, and looking for more costs some thirty exits to Firecracker.
 * - `i8042`: only the keyboard is there, which SendCtrlAltDel needs; not to look for a mouse and multiplexers saves the time.
 */
const PARAMETERS = ['reboot=k', '8250.nr_uarts=1', 'i8042.noaux', 'i8042.nomux', 'bandsox.poweroff=reboot']

export function vmConfiguration(spec: MachineSpec): VmConfiguration {
  return {
    'boot-source': {
      kernel_image_path: spec.files.kernel,
      initrd_path: spec.files.initramfs,
      boot_args: kernelCommandLine(spec, CONSOLE_UART, PARAMETERS),
    },
    drives: [
      drive(ROOT, spec.files.root, spec.isRootWritable !== true, spec.limits),
      drive(OVERLAY, spec.files.overlay, false, spec.limits),
    ],
    'machine-config': {
      vcpu_count: spec.vcpu,
      mem_size_mib: spec.memoryMib,
      ...(spec.trackDirtyPages === true && { track_dirty_pages: true }),
    },
    ...(spec.vsock !== 'off' && { vsock: { guest_cid: spec.cid, uds_path: folderFiles.vsock } }),
    entropy: {},
    // The statistics, which tell what the guest has given, cannot be had later.
    balloon: { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 1 },
  }
}

function drive(id: string, file: string, isReadOnly: boolean, limits: LiveLimits): Drive {
  const limiter = rateLimiter(limits)
  return {
    drive_id: id,
    path_on_host: file,
    // The agent mounts the root: the kernel is to be told of none.
    is_root_device: false,
    is_read_only: isReadOnly,
    // What the guest has been told is on the disk is to be there after a crash of the host.
    cache_type: 'Writeback',
    ...(limiter !== undefined && { rate_limiter: limiter }),
  }
}

/** What a machine with these limits is told of its disks. Firecracker has no limit of several together: each disk has it by itself. */
export const limitedDrives = (limits: LiveLimits): { drive_id: string; rate_limiter: RateLimiter }[] =>
  [ROOT, OVERLAY].map((id) => ({
    drive_id: id,
    // A bucket of no size is no limit, which takes an earlier one away.
    rate_limiter: {
      bandwidth: bucket(limits.diskBytesPerSecond ?? 0),
      ops: bucket(limits.diskOperationsPerSecond ?? 0),
    },
  }))

function rateLimiter({ diskBytesPerSecond, diskOperationsPerSecond }: LiveLimits): RateLimiter | undefined {
  if (diskBytesPerSecond === null && diskOperationsPerSecond === null) return undefined
  return {
    ...(diskBytesPerSecond !== null && { bandwidth: bucket(diskBytesPerSecond) }),
    ...(diskOperationsPerSecond !== null && { ops: bucket(diskOperationsPerSecond) }),
  }
}

const bucket = (perSecond: number): TokenBucket => ({ size: perSecond, refill_time: perSecond === 0 ? 0 : 1_000 })

/** Of Firecracker itself, whoever starts it. @param boots Whether it is to boot by the configuration file, or waits to be told. */
export const firecrackerArguments = (boots: boolean): string[] => [
  ...['--api-sock', folderFiles.api],
  ...['--log-path', folderFiles.log, '--level', 'Info'],
  ...['--metrics-path', folderFiles.metrics],
  ...(boots ? ['--config-file', folderFiles.configuration] : []),
]

/** Firecracker takes letters, digits and hyphens. */
export const instanceId = (sandboxId: string): string => sandboxId.replaceAll('_', '-')

/** The jailer's command. @param base Folder below which it makes the jail. */
export const jailerCommand = (
  spec: MachineSpec,
  {
    jailer,
    program,
    base,
    boots,
    maxFiles,
  }: { jailer: string; program: string; base: string; boots: boolean; maxFiles: number },
): string[] => [
  jailer,
  ...['--id', instanceId(spec.sandboxId)],
  ...['--exec-file', program],
  ...['--uid', String(spec.uid), '--gid', String(spec.uid)],
  ...['--chroot-base-dir', base],
  // Without limits this means that it leaves control groups alone: it is in ours already, as the shim's child. (With 2, it would move.)
  ...['--cgroup-version', '1'],
  ...['--resource-limit', `no-file=${maxFiles}`],
  ...(spec.networkNamespace === undefined ? [] : ['--netns', spec.networkNamespace]),
  '--',
  ...firecrackerArguments(boots),
]
