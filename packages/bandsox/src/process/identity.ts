/**
 * Names a process beyond the reuse of its pid: pid and start time together. Where the name is kept in files, which outlive the
 * host's boot and may be seen from other containers, it says also of which boot and which PID namespace it is.
 */
import { readFileSync, statSync } from 'node:fs'
import { BandSoxError, isSystemError } from '@bandsox/sdk'

export interface ProcessIdentity {
  pid: number
  /** Field 22 of /proc/PID/stat: clock ticks since the host's boot (proc(5)). */
  startTime: number
  /** Of the kernel, another one after each boot: 32 hexadecimal digits. Missing: this boot. */
  bootId?: string | undefined
  /** Inode of the PID namespace that `pid` counts in (namespaces(7)). Missing: ours. */
  pidNamespace?: number | undefined
}

/** That can be told from the outside: from another container, and after another boot. */
export interface CompleteIdentity extends ProcessIdentity {
  bootId: string
  pidNamespace: number
}

/** The identity of a living process; undefined when there is none (a zombie counts as none). */
export async function identify(pid: number): Promise<ProcessIdentity | undefined> {
  let stat: string
  try {
    stat = readFileSync(`/proc/${pid}/stat`, 'latin1') // no disk is behind it that could keep us waiting
  } catch (error) {
    if (isSystemError(error, 'ENOENT') || isSystemError(error, 'ESRCH')) return undefined
    throw error
  }
  // The second field is the command's name in parentheses and may itself hold spaces and parentheses.
  const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  if (fields[0] === 'Z' || fields[0] === 'X') return undefined
  return { pid, startTime: Number(fields[19]) }
}

/** The identity of this process. @throws `internal` when /proc is not readable. */
export async function identifySelf(): Promise<CompleteIdentity> {
  const self = await identify(process.pid)
  if (self === undefined) throw unreadable('/proc/self/stat')
  return { ...self, bootId: readBootId(), pidNamespace: readPidNamespace() }
}

/** False when exactly this process lives no more; true also for one that we cannot see, in another PID namespace. */
export async function isAlive(identity: ProcessIdentity): Promise<boolean> {
  if (identity.bootId !== undefined && identity.bootId !== readBootId()) return false
  if (await isOutOfSight(identity)) return true
  return (await identify(identity.pid))?.startTime === identity.startTime
}

/** Whether it is of another PID namespace: its pid tells nothing here. */
export async function isOutOfSight({ pidNamespace }: ProcessIdentity): Promise<boolean> {
  return pidNamespace !== undefined && pidNamespace !== readPidNamespace()
}

export const isSameProcess = (one: ProcessIdentity, other: ProcessIdentity): boolean =>
  one.pid === other.pid &&
  one.startTime === other.startTime &&
  one.bootId === other.bootId &&
  one.pidNamespace === other.pidNamespace

/** For the name of a file: `<pid>-<start time>-<PID namespace>-<boot id>`. */
export const identityText = ({ pid, startTime, pidNamespace, bootId }: CompleteIdentity): string =>
  `${pid}-${startTime}-${pidNamespace}-${bootId}`

const IDENTITY_TEXT = /^(\d+)-(\d+)-(?:(\d+)-([0-9a-f]{32})-)?/

/** @param text What {@link identityText} made, or pid and start time alone as it was before, and behind it `-` and anything. */
export function parseIdentityText(text: string): ProcessIdentity | undefined {
  const [, pid, startTime, pidNamespace, bootId] = IDENTITY_TEXT.exec(text) ?? []
  if (pid === undefined || startTime === undefined) return undefined
  return {
    pid: Number(pid),
    startTime: Number(startTime),
    ...(bootId !== undefined && { bootId, pidNamespace: Number(pidNamespace) }),
  }
}

/** Neither changes while we live. */
const readBootId = once('/proc/sys/kernel/random/boot_id', (file) =>
  readFileSync(file, 'latin1').trim().replaceAll('-', ''),
)
const readPidNamespace = once('/proc/self/ns/pid', (file) => statSync(file).ino)

function once<T>(file: string, read: (file: string) => T): () => T {
  let known: T | undefined
  return () => {
    try {
      known ??= read(file)
      return known
    } catch (error) {
      throw unreadable(file, error)
    }
  }
}

function unreadable(file: string, cause?: unknown): BandSoxError {
  return new BandSoxError('internal', `cannot tell who we are: ${file} is not readable`, { cause })
}
