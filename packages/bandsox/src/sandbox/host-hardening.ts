/**
 * Reads how far this host is set up as Firecracker recommends for production: many tenants, none of whom may learn of another.
 *
 * It only reads what the kernel shows below /sys and /proc. Much of it cannot be true of a laptop or a test machine, and need not be; so
 * nothing of it fails.
 *
 * @see Firecracker docs/prod-host-setup.md, https://github.com/firecracker-microvm/firecracker/blob/main/docs/prod-host-setup.md
 * @see Linux Documentation/admin-guide/hw-vuln, Documentation/admin-guide/mm/ksm.rst
 */
import { readdir, readFile } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'

export interface Recommendation {
  subject: string
  /** `advice`: it works, and production asks for something else. */
  verdict: 'ok' | 'advice'
  found: string
  /** What to type, as root. */
  hint?: string
}

type Finding = Omit<Recommendation, 'subject'>

/** Reads one file below the root, without its last line break; undefined when the kernel does not have it. */
type Read = (file: string) => Promise<string | undefined>

/** @param root Where /sys and /proc are: a test plays hosts. */
export async function examineHardening(root = '/'): Promise<Recommendation[]> {
  const read: Read = async (file) => {
    try {
      return (await readFile(path.join(root, file), 'utf8')).trimEnd()
    } catch (error) {
      // Of a container, or of another kernel or processor; and what only root may read is not known to us either.
      if (['ENOENT', 'ENOTDIR', 'EACCES', 'EPERM'].some((code) => isSystemError(error, code))) return undefined
      throw error
    }
  }
  const checks: [subject: string, Promise<Finding>][] = [
    ['smt', smt(read)],
    ['ksm', ksm(read)],
    ['swap', swap(read)],
    ['cpu flaws', vulnerabilities(read, path.join(root, VULNERABILITIES))],
    ['microcode', microcode(read)],
    ['nx pages', nxHugePages(read)],
    ['kvm timer', timerPeriod(read)],
    ['cgroups', cgroups(read)],
    ['huge pages', hugePages(read)],
    ['console', consoleLevel(read)],
  ]
  return await Promise.all(checks.map(async ([subject, finding]) => ({ subject, ...(await finding) })))
}

const VULNERABILITIES = 'sys/devices/system/cpu/vulnerabilities'
const UNKNOWN: Finding = { verdict: 'ok', found: 'the kernel does not show it' }

async function smt(read: Read): Promise<Finding> {
  const [active, control] = await Promise.all([
    read('sys/devices/system/cpu/smt/active'),
    read('sys/devices/system/cpu/smt/control'),
  ])
  if (active === undefined) return UNKNOWN
  if (active === '0') return { verdict: 'ok', found: `off (${control ?? 'no control'})` }
  const found = 'on: two tenants may share a core, and its caches'
  // In a virtual machine the number of threads is the outer host's doing.
  if (control === 'notsupported' || control === 'notimplemented')
    return { verdict: 'advice', found, hint: 'switch it off in the firmware, or where this machine is defined' }
  return {
    verdict: 'advice',
    found,
    hint: 'echo off > /sys/devices/system/cpu/smt/control; for good: nosmt on the kernel command line',
  }
}

async function ksm(read: Read): Promise<Finding> {
  const run = await read('sys/kernel/mm/ksm/run')
  if (run === undefined) return { verdict: 'ok', found: 'not in this kernel' }
  if (run === '2') return { verdict: 'ok', found: 'off, nothing is merged' }
  const shared = Number((await read('sys/kernel/mm/ksm/pages_sharing')) ?? '0')
  if (run === '0' && shared === 0) return { verdict: 'ok', found: 'off, nothing is merged' }
  const found = `${run === '1' ? 'on' : 'off'}, ${shared} pages are merged: who shares one can tell`
  // 2 also undoes what was merged before, as 0 does not.
  return {
    verdict: 'advice',
    found,
    hint: 'echo 2 > /sys/kernel/mm/ksm/run; and disable ksm.service and ksmtuned.service, where there are any',
  }
}

async function swap(read: Read): Promise<Finding> {
  const text = await read('proc/swaps')
  if (text === undefined) return UNKNOWN
  const areas = text
    .split('\n')
    .slice(1)
    .map((line) => line.split(/\s+/)[0] ?? '')
    .filter((name) => name !== '')
  if (areas.length === 0) return { verdict: 'ok', found: 'none' }
  // zram keeps what is swapped in memory, compressed: nothing of a guest comes to lie on a disk.
  const onDisk = areas.filter((name) => !/^\/dev\/zram\d+$/.test(name))
  if (onDisk.length === 0 && !(await hasBackingDevice(areas, read)))
    return { verdict: 'ok', found: `${areas.join(' ')}, in memory only` }
  const names = onDisk.length === 0 ? areas : onDisk
  const found = `${names.join(' ')}: memory of guests may come to lie on a disk`
  return {
    verdict: 'advice',
    found,
    hint: `swapoff ${names.map(quoted).join(' ')}; and take it out of /etc/fstab, or encrypt it`,
  }
}

/** A zram device may write what it does not need to a disk. */
async function hasBackingDevice(areas: readonly string[], read: Read): Promise<boolean> {
  const backing = await Promise.all(areas.map((area) => read(`sys/block/${path.basename(area)}/backing_dev`)))
  return backing.some((device) => device !== undefined && device !== 'none')
}

async function vulnerabilities(read: Read, folder: string): Promise<Finding> {
  let names: string[]
  try {
    names = await readdir(folder)
  } catch (error) {
    if (isSystemError(error, 'ENOENT') || isSystemError(error, 'ENOTDIR')) return UNKNOWN
    throw error
  }
  const states = await Promise.all(
    names
      .filter((name) => name !== 'old_microcode') // no flaw, and looked at by itself
      .sort()
      .map(async (name) => ({ name, state: (await read(`${VULNERABILITIES}/${name}`)) ?? '' })),
  )
  const namesWhere = (pattern: RegExp) => states.filter(({ state }) => pattern.test(state)).map(({ name }) => name)
  // "Mitigation: …; BHI: Vulnerable" is open in part. "…; SMT vulnerable": what is left of it goes with SMT.
  const open = namesWhere(/\bVulnerable\b/)
  const bySmt = namesWhere(/SMT vulnerable/)
  const unknown = namesWhere(/^Unknown/)
  const groups: [what: string, of: string[]][] = [
    ['open', open],
    ['open with SMT', bySmt],
    ['known to the outer host alone', unknown],
  ]
  const found = groups.filter(([, of]) => of.length > 0).map(([what, of]) => `${what}: ${of.join(' ')}`)
  if (found.length === 0) return { verdict: 'ok', found: `${states.length} known to the kernel, none is open` }
  const isSwitchedOff = /(?:^|\s)mitigations=off(?:\s|$)/.test((await read('proc/cmdline')) ?? '')
  const remedy = isSwitchedOff
    ? 'take mitigations=off from the kernel command line, and reboot'
    : open.length === 0 && bySmt.length > 0
      ? 'put mitigations=auto,nosmt on the kernel command line, and reboot'
      : 'update kernel and microcode, here and on an outer host: apt-get update && apt-get full-upgrade, and reboot'
  return { verdict: 'advice', found: found.join('; '), hint: `${remedy} (each in words: grep . /${VULNERABILITIES}/*)` }
}

async function microcode(read: Read): Promise<Finding> {
  const [cpuinfo = '', old] = await Promise.all([read('proc/cpuinfo'), read(`${VULNERABILITIES}/old_microcode`)])
  const field = (name: string) => new RegExp(`^${name}\\s*: (.*)$`, 'm').exec(cpuinfo)?.[1]
  const [version, vendor] = [field('microcode'), field('vendor_id')]
  if (version === undefined) return UNKNOWN
  const packages: Record<string, string> = { GenuineIntel: 'intel-microcode', AuthenticAMD: 'amd64-microcode' }
  const update = `apt-get update && apt-get install ${packages[vendor ?? ''] ?? 'the microcode package of this processor'}, and reboot`
  const isVirtual = /^flags\s*:.*\bhypervisor\b/m.test(cpuinfo)
  if (isVirtual) return { verdict: 'ok', found: `${version}, as the outer host tells it, whose affair it is` }
  if (old !== undefined && /^Vulnerable/.test(old))
    return { verdict: 'advice', found: `${version}, older than the kernel knows of`, hint: update }
  if (old !== undefined) return { verdict: 'ok', found: `${version}, as new as the kernel knows of` }
  // Kernels before 6.16 do not compare it with any.
  return {
    verdict: 'advice',
    found: `${version}; this kernel cannot tell whether it is old`,
    hint: `see that it is the newest: ${update}`,
  }
}

/** Where the processor has no iTLB multihit, its mitigation costs each start time and gains nothing. */
async function nxHugePages(read: Read): Promise<Finding> {
  const [setting, flaw] = await Promise.all([
    read('sys/module/kvm/parameters/nx_huge_pages'),
    read(`${VULNERABILITIES}/itlb_multihit`),
  ])
  if (setting === undefined) return { verdict: 'ok', found: 'kvm is not loaded' }
  const isAffected = flaw !== undefined && !/^Not affected/.test(flaw)
  const isOn = /^[Y1]/i.test(setting)
  if (isAffected && !isOn) {
    const isForGood = setting === 'never' // it cannot be switched on again before kvm is loaded anew
    return {
      verdict: 'advice',
      found: `${setting}, and the processor has iTLB multihit: a guest can stop the host`,
      hint: isForGood
        ? 'take nx_huge_pages=never from /etc/modprobe.d and the kernel command line, and reboot'
        : 'echo auto > /sys/module/kvm/parameters/nx_huge_pages',
    }
  }
  if (flaw === undefined || isAffected) return { verdict: 'ok', found: setting }
  if (!isOn) return { verdict: 'ok', found: `${setting}, not needed on this processor` }
  return {
    verdict: 'advice',
    found: `${setting}, though this processor does not need it: starts take longer`,
    hint: 'echo "options kvm nx_huge_pages=never" > /etc/modprobe.d/bandsox-kvm.conf, and reboot',
  }
}

/** The kernel's default. Guests that have their timers fire as often as it lets them take host time from others. */
const DEFAULT_TIMER_PERIOD_US = 200

/** A number to be chosen by measurement: said, not advised. */
async function timerPeriod(read: Read): Promise<Finding> {
  const text = await read('sys/module/kvm/parameters/min_timer_period_us')
  if (text === undefined) return { verdict: 'ok', found: 'kvm is not loaded' }
  const perSecond = Math.floor(1_000_000 / Math.max(1, Number(text)))
  const found = `min_timer_period_us ${text}: up to ${perSecond} interrupts a second and timer`
  if (Number(text) >= DEFAULT_TIMER_PERIOD_US) return { verdict: 'ok', found }
  return {
    verdict: 'advice',
    found: `${found}, more than by default`,
    hint: `echo "options kvm min_timer_period_us=${DEFAULT_TIMER_PERIOD_US}" >> /etc/modprobe.d/bandsox-kvm.conf, and reboot`,
  }
}

/** Firecracker and QEMU are limited by controllers of version 2. */
async function cgroups(read: Read): Promise<Finding> {
  const controllers = (await read('sys/fs/cgroup/cgroup.controllers'))?.split(/\s+/)
  if (controllers === undefined) {
    return {
      verdict: 'advice',
      found: 'version 2 is not mounted at /sys/fs/cgroup: machines are limited by their user alone',
      hint: 'systemd.unified_cgroup_hierarchy=1 on the kernel command line, and reboot',
    }
  }
  const lacking = ['cpu', 'io', 'memory', 'pids'].filter((name) => !controllers.includes(name))
  if (lacking.length > 0) {
    return {
      verdict: 'advice',
      found: `version 2, without ${lacking.join(' ')}`,
      hint: `see that cgroup_disable= on the kernel command line does not name ${lacking.join(' or ')}, and that no container shuts us off`,
    }
  }
  const options = mountOptions((await read('proc/mounts')) ?? '')
  const isFast = options.includes('favordynmods')
  const release = /(\d+)\.(\d+)/.exec((await read('proc/sys/kernel/osrelease')) ?? '')
  // With 6.0 the kernel began to favour other work than moving processes between groups, which each start does.
  const isSlowed = release !== null && Number(release[1]) >= 6
  if (isFast || !isSlowed) return { verdict: 'ok', found: `version 2${isFast ? ', favordynmods' : ''}` }
  return {
    verdict: 'advice',
    found: 'version 2, without favordynmods: making a machine takes longer on this kernel',
    hint: 'mount -o remount,favordynmods /sys/fs/cgroup (Linux 6.0 or newer)',
  }
}

/** @param mounts Text of /proc/mounts: device, place, kind, options. */
function mountOptions(mounts: string): string[] {
  const lines = mounts.split('\n').map((line) => line.split(' '))
  const ours = lines.find(([, place, kind]) => place === '/sys/fs/cgroup' && kind === 'cgroup2')
  return ours?.[3]?.split(',') ?? []
}

/** Said, not advised: they have to be reserved, and are of use only to who asks for them. */
async function hugePages(read: Read): Promise<Finding> {
  const folder = 'sys/kernel/mm/hugepages/hugepages-2048kB'
  const [total, free, transparent] = await Promise.all([
    read(`${folder}/nr_hugepages`),
    read(`${folder}/free_hugepages`),
    read('sys/kernel/mm/transparent_hugepage/enabled'),
  ])
  if (total === undefined) return { verdict: 'ok', found: 'none of 2 MiB in this kernel' }
  const mode = /\[(\w+)\]/.exec(transparent ?? '')?.[1] ?? 'unknown'
  return { verdict: 'ok', found: `${total} of 2 MiB reserved, ${free ?? '?'} free; transparent: ${mode}` }
}

/** Firecracker recommends `loglevel=1`; up to 4 only errors come, and a start makes none. */
const MAX_QUIET_LEVEL = 4

/** A kernel that tells each tap device to a serial console makes whoever starts a machine wait for it. */
async function consoleLevel(read: Read): Promise<Finding> {
  const [printk, consoles] = await Promise.all([read('proc/sys/kernel/printk'), read('sys/class/tty/console/active')])
  const level = /^\d+/.exec(printk ?? '')?.[0]
  if (level === undefined) return UNKNOWN
  const serial = (consoles ?? '').split(/\s+/).filter((name) => /^tty(?:S|AMA|USB)\d/.test(name))
  if (serial.length === 0 || Number(level) <= MAX_QUIET_LEVEL)
    return { verdict: 'ok', found: `level ${level}, on ${consoles || 'no console'}` }
  return {
    verdict: 'advice',
    found: `level ${level} on the serial console ${serial.join(' ')}: starts wait for what the kernel prints`,
    hint: 'dmesg -n 1; for good: quiet loglevel=1 on the kernel command line',
  }
}

/** For a shell; names of swap areas are paths, in which the kernel writes a space as \040. */
function quoted(name: string): string {
  const plain = name.replace(/\\([0-7]{3})/g, (_, octal: string) => String.fromCharCode(Number.parseInt(octal, 8)))
  return /^[\w./-]+$/.test(plain) ? plain : `'${plain.replaceAll("'", "'\\''")}'`
}
