/**
 * Makes storage and processes agree: what died is written down, what nobody owns is removed.
 *
 * Only what carries our mark is touched: entries of the storage's own folder, processes that the shim has put on record there, by
 * pid and start time, and those whose environment and working folder say of which VM they are.
 */
import { readdir, readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError, messageOf } from '@bandsox/sdk'
import { identify, isAlive, isOutOfSight, type ProcessIdentity } from '../process/identity.js'
import { workingFolder } from '../process/jailed-folder.js'
import { located, readRun, readShimConfig, SANDBOX_MARK } from '../process/shim.js'
import { interruptedBy, isInProgress } from '../store/operation.js'
import type { SandboxRecord } from '../store/record.js'
import { VMS_FOLDER } from '../store/storage-folder.js'
import { removeMachineCgroup } from '../vmm/cgroup.js'
import { type Host, machineFiles } from './host.js'
import { removeMembers } from './pool/fill-pool.js'
import { isLive, isNameless, leavesNothing, settle } from './settle.js'

/** Something that is not as it should be, and what would set it right. */
export interface Finding {
  /** What it is about: a sandbox, a process, a path. */
  subject: string
  /** What is wrong with it. */
  problem: string
  /** What `apply` does, as a person would say it: "remove its folder". */
  action: string
  /** Something that somebody may want to have back would be lost: it is done only when asked for. */
  losesData?: boolean
  apply(): Promise<void>
}

const REMOVAL = { recursive: true, force: true, maxRetries: 12, retryDelay: 50 } as const
/** What shim and start make in a VM's directory, and can make again. */
const OURS =
  /\.(?:sock|json|log|log\.1|err|in|out|lock|tmp)$|^(?:kernel|initramfs|root\.(?:squashfs|ext4)|vsock|vhost-device-vsock|firecracker|vmm|jail|loaded|saved|shared)$/
const MARK = `${SANDBOX_MARK}=`

/** Looks, and changes nothing. */
export async function findProblems(host: Host): Promise<Finding[]> {
  return [
    ...(await wrongRecords(host)),
    ...(await membersOfNoPool(host)),
    ...(await strangeEntries(host)),
    ...(await strangeProcesses(host)),
    ...(await unfinishedSnapshots(host)),
  ]
}

/**
 * Sets right what {@link findProblems} finds. One that resists does not keep the others from it, nor anybody from their sandboxes.
 *
 * @param options.onAction Told before each action.
 * @param options.isAsked A person wants it done, also where it loses data; else that is only told.
 */
export async function reconcile(
  host: Host,
  { onAction = () => undefined, isAsked = false }: { onAction?: (finding: Finding) => void; isAsked?: boolean } = {},
): Promise<Finding[]> {
  const findings = await findProblems(host)
  for (const finding of findings) {
    const { subject, problem, action } = finding
    if (finding.losesData === true && !isAsked) {
      host.warn(`${subject}: ${problem}; it is left as it is: see bandsox cleanup --dry-run`)
      continue
    }
    onAction(finding)
    try {
      await finding.apply()
    } catch (error) {
      host.warn(`${subject}: ${problem}; cannot ${action}: ${messageOf(error)}`)
    }
  }
  return findings
}

async function wrongRecords(host: Host): Promise<Finding[]> {
  const findings: Finding[] = []
  for (const record of await host.store.list()) {
    const problem = await problemOf(host, record)
    if (problem === undefined) continue
    findings.push({ subject: `sandbox ${record.id}`, ...problem, apply: async () => void (await settle(host, record)) })
  }
  return findings
}

async function problemOf(
  host: Host,
  { id, state, operation, machine }: SandboxRecord,
): Promise<{ problem: string; action: string } | undefined> {
  if (operation !== undefined) {
    if (await isInProgress(operation)) return undefined
    const problem = `process ${operation.holder.pid} has died at its ${operation.name}`
    const isUnfinished = leavesNothing(state, interruptedBy(operation.name))
    return { problem, action: isUnfinished ? 'remove it' : 'write down what is left, and release what it held' }
  }
  if (!isLive(state)) return undefined
  if (state.kind === 'stopping') return { problem: 'its stop was interrupted', action: 'stop it' }
  const { vmmAlive, shimAlive } = await readRun(host.store.directoryOf(id))
  if (!vmmAlive)
    return {
      problem: `it is ${state.kind}, and its VMM has ended`,
      action: 'write that down, and release its CID and port',
    }
  if (!shimAlive) return { problem: 'its shim has died', action: 'put another one beside its VMM' }
  if (isNameless(state, machine))
    return { problem: 'it was loaded from a state, and was not told who it is', action: 'tell it, and let it go on' }
  return undefined
}

/** Sandboxes that wait in a pool which was removed meanwhile, or for a template: nobody can ever take them. */
async function membersOfNoPool(host: Host): Promise<Finding[]> {
  const waiting = (await host.store.list()).filter(
    ({ pool, operation }) => pool !== undefined && operation === undefined,
  )
  if (waiting.length === 0) return []
  // Read after the sandboxes: a pool is there before what waits in it.
  const pools = new Set((await host.store.pools.list()).map(({ id }) => id))
  return waiting
    .filter(({ pool }) => pool !== undefined && !pools.has(pool))
    .map(({ id }) => ({
      subject: `sandbox ${id}`,
      problem: 'it waits in a pool that is no more',
      action: 'remove it',
      apply: async () => void (await removeMembers(host, [id])),
    }))
}

/** What of a snapshot that was never whole, or was to be gone, nobody can have back. */
async function unfinishedSnapshots(host: Host): Promise<Finding[]> {
  return (await host.store.snapshots.remains()).map(({ subject, problem, remove }) => ({
    ...{ subject, problem, action: 'remove what there is of it', apply: remove },
  }))
}

async function strangeEntries(host: Host): Promise<Finding[]> {
  const findings: Finding[] = []
  for (const { name, path: entry, id } of await host.store.strangers()) {
    // Of earlier versions: a folder that is just being made, and named so.
    const [, pid, startTime] = /^\.creating-(\d+)-(\d+)-/.exec(name) ?? []
    if (pid !== undefined && (await isAlive({ pid: Number(pid), startTime: Number(startTime) }))) continue
    findings.push({
      subject: entry,
      losesData: !name.startsWith('.') && (await holdsData(entry)),
      problem: id === undefined ? 'it belongs to no sandbox' : `sandbox ${id} is not known`,
      action: 'end what runs in it, and remove it',
      apply: async () => {
        await endAllOf(entry)
        await rm(entry, REMOVAL)
      },
    })
  }
  return findings
}

/** A VM's disk, or what is not ours at all. */
async function holdsData(entry: string): Promise<boolean> {
  try {
    const names = await readdir(entry)
    return names.some((name) => name === machineFiles.overlay || !OURS.test(name))
  } catch (error) {
    if (isSystemError(error, 'ENOTDIR')) return true // a file of somebody's
    if (isSystemError(error, 'ENOENT')) return false
    throw error
  }
}

/** Ends what runs for the VM of a directory: the shim first, or it would tell of the others' end. */
async function endAllOf(directory: string): Promise<void> {
  const { run } = await readRun(directory).catch(() => ({ run: undefined })) // it may hold anything
  if (run !== undefined)
    for (const identity of [run.shim, run.vmm, ...(run.vsock === undefined ? [] : [run.vsock])])
      await endProcess(located(identity, run))
  // A shim that was still beginning has nothing on record, but may have made the control group.
  else
    for (const { identity, id, cwd } of await processesBelow(`${path.dirname(directory)}/`))
      if (id !== undefined && `${cwd}/`.startsWith(`${directory}/`)) await endProcess(identity)
  const config = await readShimConfig(directory).catch(() => undefined) // as may this: then no group of it is known
  if (config?.cgroup !== undefined) await removeMachineCgroup(config.cgroup.folder, config.sandbox)
}

async function endProcess(identity: ProcessIdentity): Promise<void> {
  // One that cannot be seen counts as living, but its pid is somebody else's here.
  if (!(await isAlive(identity)) || (await isOutOfSight(identity))) return
  try {
    process.kill(identity.pid, 'SIGKILL')
  } catch (error) {
    if (!isSystemError(error, 'ESRCH')) throw error // it has just ended by itself
  }
}

/** Marked processes in the folder of a VM that is not known: its folder was removed by hand, or its record was lost. */
async function strangeProcesses(host: Host): Promise<Finding[]> {
  const vms = `${path.join(host.store.root, VMS_FOLDER)}/`
  const inside = (await processesBelow(vms)).filter(({ id }) => id !== undefined)
  if (inside.length === 0) return []
  // Read after the processes: a sandbox has its record before it has any.
  const known = new Set(await host.store.ids())
  return inside
    .filter(({ id, cwd }) => id !== undefined && (!known.has(id) || cwd.endsWith(' (deleted)')))
    .map(({ identity, id, program }) => ({
      subject: `process ${identity.pid} (${program})`,
      problem: `it is of sandbox ${id}, which is not known`,
      action: 'end it',
      apply: () => endProcess(identity),
    }))
}

interface MarkedProcess {
  identity: ProcessIdentity
  cwd: string
  id: string | undefined
  program: string
}

async function processesBelow(folder: string): Promise<MarkedProcess[]> {
  const found: MarkedProcess[] = []
  for (const name of await readdir('/proc')) {
    if (!/^\d+$/.test(name)) continue
    try {
      const { folder: cwd, isJail } = workingFolder(folder, name)
      if (!cwd.startsWith(folder)) continue
      const identity = await identify(Number(name))
      if (identity === undefined) continue
      // The jailer takes the environment away; but nobody else's process is in such a folder.
      const id = isJail ? cwd.slice(folder.length).split('/')[0] : await markOf(name)
      const program = (await readFile(`/proc/${name}/comm`, 'utf8')).trim()
      found.push({ identity, cwd, id, program })
    } catch {
      // It has ended meanwhile, or is another user's: in both cases not one of ours to end.
    }
  }
  return found
}

async function markOf(pid: string): Promise<string | undefined> {
  const environment = (await readFile(`/proc/${pid}/environ`, 'latin1')).split('\0')
  return environment.find((entry) => entry.startsWith(MARK))?.slice(MARK.length)
}
