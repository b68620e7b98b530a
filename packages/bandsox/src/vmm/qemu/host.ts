/** What this host offers QEMU: the program and a vsock backend. Each answer carries its reason. */
import { open } from 'node:fs/promises'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import { runCommand } from '../../process/run.js'
import { findProgram, type HostTools, requireLinuxX64 } from '../host.js'

/** The oldest with everything that we use: Debian 12's. */
const OLDEST_QEMU = [7, 2] as const
const PROGRAM = 'qemu-system-x86_64'
const VSOCK_DAEMON = 'vhost-device-vsock'
const VSOCK_DEVICE = '/dev/vhost-vsock'
const VERSION_TIMEOUT_MS = 10_000

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
  const { stdout } = await runCommand([program, '--version'], { timeoutMs: VERSION_TIMEOUT_MS })
  return { program, version: requireRecentQemu(stdout) }
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
