/** What a host offers every VMM: programs, hardware virtualization. Each answer carries its reason. */
import { constants, existsSync } from 'node:fs'
import { access, stat } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { z } from 'zod'
import { runCommand } from '../process/run.js'

const KVM_DEVICE = '/dev/kvm'
const PROBE_TIMEOUT_MS = 10_000

export interface HostTools {
  /** The shim's binary; it also holds the KVM probe. */
  shim: string
  /** Folders searched for programs, in order: PATH, and our own cache for the vsock daemon. */
  searchPath: readonly string[]
  /** What is known of KVM already. Default: it is found out. */
  kvm?: Kvm | undefined
  /** Firecracker and its jailer where a user says where they are. Default: as `init` has placed them, else in the search path. */
  firecracker?: { program?: string | undefined; jailer?: string | undefined; storage?: string | undefined }
}

export type Kvm = {
  /** How fast the clock of this host's processor runs, in kHz, within some millionths. */
  tscKhz?: number | undefined
} & (
  | /** `groups`: what a VM's own user must be in to open the device. */
  { usable: true; groups: number[]; reason?: undefined }
  /** Only root may open it: it is of use in a jail alone, where a device of its own is made. */
  | { usable: true; groups: undefined; reason: string }
  | { usable: false; groups?: undefined; reason: string }
)

export type Acceleration =
  /** `groups`: what a VM's own user must be in to open the device. */
  { kind: 'kvm'; groups: number[]; reason?: undefined } | { kind: 'tcg'; reason: string }

/** @throws `host-unsupported` for anything but Linux on x86-64. */
export function requireLinuxX64(platform: string = process.platform, architecture: string = process.arch): void {
  if (platform === 'linux' && architecture === 'x64') return
  throw new BandSoxError(
    'host-unsupported',
    `BandSox runs on Linux on x86-64; this is ${platform} on ${architecture}`,
    {
      hint: 'use a Linux x86-64 machine',
    },
  )
}

const probeSchema = z.object({
  usable: z.boolean(),
  reason: z.string(),
  tscKhz: z.number().int().positive().optional(),
})

/**
 * Whether KVM works, by making a VM and running an instruction: neither a CPU flag nor the presence of /dev/kvm says so.
 */
export async function probeKvm(tools: HostTools, device: string = KVM_DEVICE): Promise<Kvm> {
  if (tools.kvm !== undefined) return tools.kvm
  let stdout: string
  try {
    // Exit status 3 means "not usable", with the reason on stdout; `runCommand` would only see a failure.
    stdout = (
      await runCommand(['/bin/sh', '-c', '"$1" probe-kvm; case $? in 0 | 3) ;; *) exit 1 ;; esac', 'sh', tools.shim], {
        timeoutMs: PROBE_TIMEOUT_MS,
      })
    ).stdout
  } catch (error) {
    return { usable: false, reason: `the KVM probe failed: ${messageOf(error)}` }
  }
  const probe = probeSchema.safeParse(parseOrUndefined(stdout))
  if (!probe.success) return { usable: false, reason: 'the KVM probe answered something unknown' }
  const { tscKhz } = probe.data
  if (!probe.data.usable) return { usable: false, reason: probe.data.reason, tscKhz }
  // An ordinary user's VMMs are that user's, as the probe was. Root opens any device, but VMMs of root's do not run as root.
  if (process.getuid?.() !== 0) return { usable: true, groups: [], tscKhz }
  const groups = groupsToOpen(await stat(device))
  if (groups !== undefined) return { usable: true, groups, tscKhz }
  const remedy = `chgrp kvm ${device}; chmod 660 ${device}`
  return {
    usable: true,
    groups: undefined,
    tscKhz,
    reason: `only root may open ${device}, and no VMM runs as root (as root: ${remedy})`,
  }
}

/** What QEMU has: it opens the device as the VM's user. */
export const accelerationBy = ({ usable, groups, reason }: Kvm): Acceleration =>
  usable && groups !== undefined ? { kind: 'kvm', groups } : { kind: 'tcg', reason: reason ?? '' }

/**
 * The groups that let any user open a device for reading and writing.
 *
 * @returns undefined when nothing does but root or root's group, which also opens files that are no VMM's affair.
 */
export function groupsToOpen({ gid, mode }: { gid: number; mode: number }): number[] | undefined {
  if ((mode & 0o006) === 0o006) return []
  return (mode & 0o060) === 0o060 && gid !== 0 ? [gid] : undefined
}

function parseOrUndefined(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined // not JSON is one more shape that the schema refuses
  }
}

export async function findProgram(name: string, searchPath: readonly string[]): Promise<string | undefined> {
  const candidates = searchPath.map((folder) => path.join(folder, name)).filter((file) => existsSync(file))
  const usable = await Promise.all(candidates.map(isExecutable))
  return candidates[usable.indexOf(true)]
}

async function isExecutable(file: string): Promise<boolean> {
  try {
    await access(file, constants.X_OK)
    return true
  } catch {
    return false // every reason means the same
  }
}
