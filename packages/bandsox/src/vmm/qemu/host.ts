/** What this host offers QEMU: the program, hardware virtualization, a vsock backend. Each answer carries its reason. */
import { constants, existsSync } from 'node:fs'
import { access, open, stat } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import { z } from 'zod'
import { runCommand } from '../../process/run.js'

/** The oldest with everything that we use: Debian 12's. */
const OLDEST_QEMU = [7, 2] as const
const PROGRAM = 'qemu-system-x86_64'
const VSOCK_DAEMON = 'vhost-device-vsock'
const VSOCK_DEVICE = '/dev/vhost-vsock'
const KVM_DEVICE = '/dev/kvm'
const PROBE_TIMEOUT_MS = 10_000

export interface HostTools {
  /** The shim's binary; it also holds the KVM probe. */
  shim: string
  /** Folders searched for programs, in order: PATH, and our own cache for the vsock daemon. */
  searchPath: readonly string[]
}

export type Acceleration =
  /** `groups`: what a VM's own user must be in to open the device. */
  { kind: 'kvm'; groups: number[]; reason?: undefined } | { kind: 'tcg'; reason: string }

export type VsockBackend =
  | { kind: 'kernel' }
  | { kind: 'daemon'; program: string }
  | { kind: 'none'; reason: string; hint: string }

/** @throws `host-unsupported` on another system or architecture, or for a QEMU that is too old; `host-missing` without one. */
export async function findQemu(tools: HostTools): Promise<{ program: string; version: string }> {
  requireLinuxX64()
  const program = await findProgram(PROGRAM, tools.searchPath)
  if (program === undefined) {
    throw new BandSoxError('host-missing', `${PROGRAM} is not installed`, {
      hint: 'install it: apt-get install qemu-system-x86',
    })
  }
  const { stdout } = await runCommand([program, '--version'], { timeoutMs: PROBE_TIMEOUT_MS })
  return { program, version: requireRecentQemu(stdout) }
}

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

/** @returns The version in `qemu --version`'s answer. @throws `host-unsupported` when it is older than 7.2. */
export function requireRecentQemu(versionText: string): string {
  const match = /version (\d+)\.(\d+)(\.\d+)?/.exec(versionText)
  if (match === null)
    throw new BandSoxError(
      'host-unsupported',
      `cannot tell QEMU's version from ${JSON.stringify(versionText.slice(0, 80))}`,
    )
  const [major, minor] = [Number(match[1]), Number(match[2])]
  const [oldestMajor, oldestMinor] = OLDEST_QEMU
  const version = `${major}.${minor}${match[3] ?? ''}`
  if (major > oldestMajor || (major === oldestMajor && minor >= oldestMinor)) return version
  throw new BandSoxError(
    'host-unsupported',
    `QEMU ${version} is too old: ${OLDEST_QEMU.join('.')} or newer is needed`,
    {
      hint: 'upgrade the package qemu-system-x86, or use Debian 12, Ubuntu 24.04 or newer',
    },
  )
}

const probeSchema = z.object({ usable: z.boolean(), reason: z.string() })

/**
 * Whether KVM works, by making a VM and running an instruction: neither a CPU flag nor the presence of /dev/kvm says so.
 */
export async function probeAcceleration(tools: HostTools, device: string = KVM_DEVICE): Promise<Acceleration> {
  let stdout: string
  try {
    // Exit status 3 means "not usable", with the reason on stdout; `runCommand` would only see a failure.
    stdout = (
      await runCommand(['/bin/sh', '-c', '"$1" probe-kvm; case $? in 0 | 3) ;; *) exit 1 ;; esac', 'sh', tools.shim], {
        timeoutMs: PROBE_TIMEOUT_MS,
      })
    ).stdout
  } catch (error) {
    return { kind: 'tcg', reason: `the KVM probe failed: ${messageOf(error)}` }
  }
  const probe = probeSchema.safeParse(parseOrUndefined(stdout))
  if (!probe.success) return { kind: 'tcg', reason: 'the KVM probe answered something unknown' }
  if (!probe.data.usable) return { kind: 'tcg', reason: probe.data.reason }
  // An ordinary user's VMMs are that user's, as the probe was. Root opens any device, but VMMs of root's do not run as root.
  if (process.getuid?.() !== 0) return { kind: 'kvm', groups: [] }
  const groups = groupsToOpen(await stat(device))
  if (groups !== undefined) return { kind: 'kvm', groups }
  const remedy = `chgrp kvm ${device}; chmod 660 ${device}`
  return { kind: 'tcg', reason: `only root may open ${device}, and no VMM runs as root (as root: ${remedy})` }
}

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

/** The kernel's backend where this user may open it, else the daemon. */
export async function findVsockBackend(tools: HostTools, device: string = VSOCK_DEVICE): Promise<VsockBackend> {
  const [refusal, program] = await Promise.all([refusalOf(device), findProgram(VSOCK_DAEMON, tools.searchPath)])
  if (refusal === undefined) return { kind: 'kernel' }
  if (program !== undefined) return { kind: 'daemon', program }
  const remedy = isSystemError(refusal, 'EACCES')
    ? `let a group of yours open ${device}, which usually belongs to kvm`
    : 'modprobe vhost_vsock'
  return {
    kind: 'none',
    reason: `${messageOf(refusal)}; and ${VSOCK_DAEMON} is not installed`,
    hint: `as root: ${remedy}; or let npm run setup build ${VSOCK_DAEMON} (it needs cargo)`,
  }
}

/** Why we may not open it. */
async function refusalOf(device: string): Promise<unknown> {
  try {
    await (await open(device, 'r+')).close()
    return undefined
  } catch (error) {
    return error
  }
}

async function findProgram(name: string, searchPath: readonly string[]): Promise<string | undefined> {
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
