/**
 * Control groups (v2) for machines: whether this process may make them, and what is written into one.
 *
 * A group's controllers limit its children only where its own `cgroup.subtree_control` names them, and only a group without
 * processes of its own may name any ("no internal processes"; the host's root group is exempt). A process is moved by its writing
 * into `cgroup.procs`, for which the mover needs the right to write in the nearest group above both places. Hence: root makes a
 * group of ours below the host's root group; an ordinary user needs one that was delegated to them, which contains us.
 *
 * @see Linux Documentation/admin-guide/cgroup-v2.rst; systemd's CGROUP_DELEGATION.
 */
import { constants } from 'node:fs'
import { access, mkdir, readFile, rmdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import type { MachineLimits } from './limits.js'

export type CgroupSupport =
  /** `parent`: the group in which each machine gets its own. */
  { usable: true; parent: string } | { usable: false; reason: string; hint: string }

/** Where the kernel shows control groups, and who asks. */
export interface CgroupHost {
  mount: string
  /** The file that says which group this process is in. */
  own: string
  isRoot: boolean
}

const NEEDED = ['cpu', 'memory', 'pids'] as const
const PARENT = 'bandsox'
/** Of cpu.max, in microseconds: the kernel's default. */
const CPU_PERIOD = 100_000
/** The least that the kernel takes (1 ms). */
const MIN_CPU_QUOTA = 1_000
const DEFAULT_PROCESSES = 256
/** What QEMU takes beside the guest's memory: buffers and page tables; and under emulation up to 1 GiB of translated code. */
const OVERHEAD_MIB = { kvm: 512, tcg: 1_536 }

const HINT_V2 = 'start the host with systemd.unified_cgroup_hierarchy=1 on its kernel command line'
const HINT_DELEGATE =
  'run it in a delegated group: systemd-run --user --scope -p Delegate=yes COMMAND, or a service with Delegate=yes and DelegateSubgroup=main'

const thisHost = (): CgroupHost => ({
  mount: '/sys/fs/cgroup',
  own: '/proc/self/cgroup',
  isRoot: process.getuid?.() === 0,
})

/**
 * Finds or makes the group for all machines, with the controllers that they need: only that tells whether it may be made.
 */
export async function cgroupSupport(host: CgroupHost = thisHost()): Promise<CgroupSupport> {
  const { mount } = host
  if ((await readIfThere(path.join(mount, 'cgroup.controllers'))) === undefined)
    return { usable: false, reason: `control groups of version 2 are not mounted at ${mount}`, hint: HINT_V2 }
  const base = host.isRoot ? mount : await delegatedGroup(host)
  if (base === undefined) {
    const reason = `this process is in the control group ${(await ownGroup(host)) ?? 'of another version'}, and nothing around it is ours`
    return { usable: false, reason, hint: HINT_DELEGATE }
  }
  const parent = path.join(base, PARENT)
  try {
    await mkdir(parent, { recursive: true })
    await enableControllers(base)
    await enableControllers(parent)
    return { usable: true, parent }
  } catch (error) {
    const hint = isSystemError(error, 'EBUSY')
      ? `processes are in ${base} itself; ${HINT_DELEGATE}`
      : 'let this user, or this container, write to its control groups'
    return { usable: false, reason: `cannot make control groups in ${base}: ${messageOf(error)}`, hint }
  }
}

async function readIfThere(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'latin1')
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}

/** Our group's path below the mount; undefined when it is not in the hierarchy of version 2, or out of sight. */
async function ownGroup({ own }: CgroupHost): Promise<string | undefined> {
  const line = (await readFile(own, 'latin1')).split('\n').find((each) => each.startsWith('0::/'))
  const group = line?.slice('0::'.length)
  return group?.split('/').includes('..') ? undefined : group
}

/** The highest group above us that we may make groups in and move ourselves within. */
async function delegatedGroup(host: CgroupHost): Promise<string | undefined> {
  const own = await ownGroup(host)
  if (own === undefined) return undefined
  const names = own.split('/').filter((name) => name !== '')
  for (let depth = 0; depth <= names.length; depth++) {
    const group = path.join(host.mount, ...names.slice(0, depth))
    const needed = [group, path.join(group, 'cgroup.procs'), path.join(group, 'cgroup.subtree_control')]
    if ((await Promise.all(needed.map(isWritable))).every(Boolean)) return group
  }
  return undefined
}

async function isWritable(file: string): Promise<boolean> {
  try {
    await access(file, constants.W_OK)
    return true
  } catch {
    return false // every reason means the same to who looks for a place
  }
}

/** @throws What the kernel says, or that a controller is not to be had here. */
async function enableControllers(group: string): Promise<void> {
  const wordsOf = async (file: string) => (await readFile(path.join(group, file), 'latin1')).trim().split(/\s+/)
  const enabled = await wordsOf('cgroup.subtree_control')
  const missing = NEEDED.filter((controller) => !enabled.includes(controller))
  if (missing.length === 0) return
  const available = await wordsOf('cgroup.controllers')
  const absent = missing.filter((controller) => !available.includes(controller))
  if (absent.length > 0)
    throw new BandSoxError('host-unsupported', `${group} does not have the controllers ${absent.join(', ')}`)
  await writeFile(path.join(group, 'cgroup.subtree_control'), missing.map((controller) => `+${controller}`).join(' '))
}

/** The group of one machine, as the shim is told to make it. */
export function machineCgroup(
  parent: string,
  machine: { sandboxId: string; vcpu: number; memoryMib: number; limits: MachineLimits },
  accelerator: 'kvm' | 'tcg',
): { folder: string; settings: Record<string, string> } {
  const memoryMib = machine.memoryMib + OVERHEAD_MIB[accelerator]
  return {
    folder: path.join(parent, machine.sandboxId),
    settings: {
      'cpu.max': cpuMax(machine.limits.cpus),
      'memory.max': String(memoryMib * 1024 * 1024),
      'pids.max': String(machine.limits.processes ?? DEFAULT_PROCESSES + machine.vcpu),
    },
  }
}

/** Processes that were killed leave it within some ms. */
const REMOVE_PATIENCE_MS = 2_000
const REMOVE_POLL_MS = 5

/**
 * Removes the group of a machine whose processes have been killed, for a shim that was killed before it could. Nothing is done about a
 * folder that is none of this machine's, whatever a file has said.
 */
export async function removeMachineCgroup(folder: string, sandboxId: string): Promise<void> {
  if (path.basename(folder) !== sandboxId || path.basename(path.dirname(folder)) !== PARENT) return
  for (const deadline = performance.now() + REMOVE_PATIENCE_MS; ; await delay(REMOVE_POLL_MS)) {
    try {
      return await rmdir(folder)
    } catch (error) {
      if (isSystemError(error, 'ENOENT') || isSystemError(error, 'ENOTDIR')) return
      if (!isSystemError(error, 'EBUSY') || performance.now() > deadline) throw error
    }
  }
}

/** Changes a machine's share of the processors while it runs. @throws What the kernel says. */
export async function setCpus(folder: string, cpus: number | null): Promise<void> {
  await writeFile(path.join(folder, 'cpu.max'), cpuMax(cpus))
}

const cpuMax = (cpus: number | null): string =>
  `${cpus === null ? 'max' : Math.max(MIN_CPU_QUOTA, Math.round(cpus * CPU_PERIOD))} ${CPU_PERIOD}`

/** @throws `host-unsupported` for a limit that nothing here would keep. */
export function requireLimits({ cpus, processes }: MachineLimits, groups: CgroupSupport): void {
  if (groups.usable || (cpus === null && (processes === null || process.getuid?.() === 0))) return
  const what = cpus !== null ? 'processors' : 'processes'
  throw new BandSoxError('host-unsupported', `cannot limit the ${what} of a machine: ${groups.reason}`, {
    hint: groups.hint,
  })
}
