/** Finds out in which folder of ours a process works that has another root. */
import { readFileSync, readlinkSync, statSync } from 'node:fs'

/** The program that a jail of ours is for: only its processes are looked at closely. */
const JAILED_PROGRAM = 'firecracker'
/** The end of a jail's path: a VM's folder, and the jail in it. */
const JAIL_PATTERN = /\/[^/]+\/jail\/firecracker\/[^/]+\/root$/
/** What the kernel adds to the path of what has been removed: of a working folder, and of a root. */
const DELETED = ' (deleted)'
const DELETED_ROOT = '//deleted'

/**
 * The working folder of a process, as the host names it. In a jail it shows as `/`, as seen from inside; which folder that is, its name
 * tells, or for one that was removed its mounts (proc(5), mountinfo), by its path on the disk, which may lack the beginning of ours.
 *
 * @param vms Folder of all VMs' folders, with a slash at the end.
 * @returns Ends with ` (deleted)` when it was removed.
 * @throws System errors, when the process has ended or is another user's.
 */
export function workingFolder(vms: string, pid: string): { folder: string; isJail: boolean } {
  const seen = readlinkSync(`/proc/${pid}/cwd`)
  const jail = seen === '/' ? jailBelow(vms, pid) : undefined
  return { folder: jail ?? seen, isJail: jail !== undefined }
}

function jailBelow(vms: string, pid: string): string | undefined {
  if (readFileSync(`/proc/${pid}/comm`, 'utf8').trim() !== JAILED_PROGRAM) return undefined
  return jailByName(vms, pid) ?? jailByMounts(vms, pid)
}

/** The jail is named after the machine, which is named on the command line: is it this process's root? */
function jailByName(vms: string, pid: string): string | undefined {
  const words = readFileSync(`/proc/${pid}/cmdline`, 'utf8').split('\0')
  const id = words[words.indexOf('--id') + 1] ?? ''
  if (!/^[A-Za-z0-9-]{1,64}$/.test(id)) return undefined
  // An id of ours has one `_`, which Firecracker does not take: it comes first.
  const jail = `${vms}${id.replace('-', '_')}/jail/${JAILED_PROGRAM}/${id}/root`
  const [ours, its] = [statSync(jail, { throwIfNoEntry: false }), statSync(`/proc/${pid}/root/`)]
  return ours?.ino === its.ino && ours.dev === its.dev ? jail : undefined
}

/** Of one that was removed, which has no name any more. */
function jailByMounts(vms: string, pid: string): string | undefined {
  const mounts = readFileSync(`/proc/${pid}/mountinfo`, 'utf8')
    .split('\n')
    .map((line) => line.split(' '))
  const [, , , onDisk = '/'] = mounts.find(([, , , , at]) => at === '/') ?? []
  if (!onDisk.endsWith(DELETED_ROOT)) return undefined
  const root = onDisk.slice(0, -DELETED_ROOT.length)
  const inside = JAIL_PATTERN.exec(root)?.[0].slice(1)
  if (inside === undefined || !`${vms}${inside}`.endsWith(root)) return undefined
  return `${vms}${inside}${DELETED}`
}
