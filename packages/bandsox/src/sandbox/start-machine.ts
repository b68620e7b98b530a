/**
 * Starts the machine of a sandbox whose directory, disk and boot files are there: by booting it, or by loading a state; the same for a new
 * one and for one that was stopped.
 */
import { chown, link, rm } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, type Limits, messageOf } from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import { describeExit, readRun } from '../process/shim.js'
import { FIRST_CID } from '../store/numbers.js'
import type { MachineRecord, SandboxRecord } from '../store/record.js'
import type { Machine, MachineSpec, MachineState } from '../vmm/vmm.js'
import { admitWithin, hostMemoryMib } from './admission.js'
import { agentOf } from './agent-of.js'
import { type ConsolePosition, consolePosition, consoleSaysReady, consoleTail } from './console.js'
import { startOnFreeCid } from './free-cid.js'
import { type Host, IMPORTED_ROOT, machineFiles } from './host.js'
import { hostnameOf, tellIdentity } from './identity.js'
import { describeLastWords, lastWords } from './last-words.js'
import { planNetwork } from './network-step.js'
import { loadBoot } from './prepare.js'
import type { Releases } from './releases.js'
import { endMachine } from './settle.js'
import { type StageClock, stageClock } from './stage-clock.js'

/** Of the time for a boot, how long the console's word is waited for before the link is tried without it. */
const HINT_SHARE = 0.75

/** What a machine is loaded from, in place of being booted. */
export interface SavedMachine {
  state: MachineState
  /** What the machine was when it was saved. */
  machine: MachineRecord
  /** Guest port that its agent listens on. */
  port: number
  /** The guest's hooks hear of it, and may take so long together. */
  hooksMs: number
  /** Those that it had, where they are known. */
  limits?: Limits
  /** Its agent did not freeze it, and may be one that cannot be told who it is either. Default false. */
  isUntold?: boolean
}

export interface StartMachineOptions {
  bootTimeoutMs: number
  signal: AbortSignal | undefined
  /** Gets the release of each thing as it is acquired. */
  releases: Releases
  clock?: StageClock
  /** See `MachineSpec`. */
  overlayAsData?: boolean
  saved?: SavedMachine | undefined
  tracksChanges?: boolean | undefined
  /** Called when a saved machine is there, and has not run yet. */
  beforeRunning?: (facts: MachineRecord) => Promise<void>
}

export interface StartedMachine {
  agent: Agent
  facts: MachineRecord
  /** Milliseconds of each stage, the guest's own after ours. */
  timings: Record<string, number>
}

/**
 * Takes the numbers, starts the VMM, and waits for the agent. The caller has the claim on the sandbox, and writes the new state.
 *
 * @throws `host-missing`, `host-unsupported`, `host-resource`, `vsock-unavailable`, `vmm-failed`, `boot-failed`,
 *   `agent-unreachable`, or `signal`'s reason. What was acquired until then is in `releases`.
 */
export async function startMachine(
  host: Host,
  record: SandboxRecord,
  options: StartMachineOptions,
): Promise<StartedMachine> {
  const { bootTimeoutMs, signal, releases, clock = stageClock(), saved, tracksChanges, beforeRunning } = options
  const { overlayAsData = false } = options
  const directory = host.store.directoryOf(record.id)
  const printed = await consolePosition(directory)
  clock.mark('files')
  const configuration = await host.configuration()
  const admit = admitWithin(hostMemoryMib(), configuration.host.memoryOvercommit)
  releases.add('CID and port', () => host.store.releaseNumbers(record.id))
  const network = await planNetwork(record)
  releases.add('its network', network.release)
  releases.add('the VMM', async () => void (await endMachine(host, record)))
  const starting = startOnFreeCid(host, record.id, {
    specOf: async (numbers) => {
      const spec = await machineSpec(host, record, numbers, saved?.machine)
      await ownDisks(spec)
      return {
        ...{ ...spec, overlayAsData },
        ...(network.namespace !== undefined && { networkNamespace: network.namespace }),
        ...(tracksChanges !== undefined && { trackDirtyPages: tracksChanges }),
      }
    },
    start: (spec) =>
      saved === undefined
        ? host.vmm.start(spec)
        : host.vmm.load(spec, saved.state, {
            // By a VMM all clocks of the guest would leap, and end what its agent waits for a while: it sets the one of the day itself.
            ...(saved.isUntold !== true && { clockRealtime: false }),
            ...{ signal, trackDirtyPages: tracksChanges === true, resume: beforeRunning === undefined },
            ...(saved.limits !== undefined && { savedLimits: saved.limits }),
            networkOverrides: network.overrides,
          }),
    admit,
    signal,
  })
  const {
    spec,
    machine,
    facts: told,
  } = await starting.catch(async (error: unknown) => {
    if (!(error instanceof BandSoxError && error.code === 'boot-failed')) throw error
    throw await explained(error, record.id, directory, printed, bootTimeoutMs)
  })
  releases.add('our hold on the VMM', async () => machine.close())
  clock.mark('vmm')
  const facts: MachineRecord = {
    ...told,
    startedAt: new Date().toISOString(),
    fingerprint: await host.vmm.fingerprint(spec),
    ...(tracksChanges !== undefined && { tracksChanges }),
  }
  if (beforeRunning !== undefined) {
    await beforeRunning(facts)
    await machine.resume()
    await machine.attachVsock()
  }
  if (facts.jailed === false) host.info(`${record.id} is not in a jail: ${facts.jailReason}`)
  if (facts.vsock !== null) {
    host.debug(`Configuring ${facts.vmm} vsock: CID=${spec.cid}, socket=${path.join(directory, facts.vsock.socket)}`)
    host.debug(`Vsock bridge enabled: CID=${spec.cid}, port=${spec.port}`)
    host.debug(`Vsock bridge loop started for ${record.id}`)
  } else {
    host.info(`${record.id} has no vsock, its agent is reached over the serial line: ${facts.vsockReason}`)
  }
  const waiting = { printed, hasVsock: facts.vsock !== null, timeoutMs: bootTimeoutMs, signal }
  const port = saved?.port ?? spec.port
  const first = agentOf(host, { id: record.id, machine: facts, port })
  releases.add('connections', async () => first.close())
  const hello = await whenReady(machine, first, spec, { ...waiting, boots: saved === undefined })
  clock.mark('hello')
  const agent = await tellIdentity(host, record, {
    ...{ facts, port: spec.port, agent: first, hello, signal },
    ...(saved !== undefined && { saved: { port: saved.port, hooksMs: saved.hooksMs } }),
  })
  releases.add('more connections', async () => agent.close())
  clock.mark('identity')
  machine.close()
  return { agent, facts, timings: { ...clock.stages, ...(saved === undefined && guestStages(hello.stages)) } }
}

/** Hard links to what all share: today's kernel and agent, also for a disk that was made with earlier ones. */
export async function linkBootFiles(host: Host, id: string): Promise<void> {
  const directory = host.store.directoryOf(id)
  const boot = await loadBoot(host.store.root)
  await Promise.all([
    replaceLink(boot.kernel.vmlinux.path, path.join(directory, machineFiles.kernel)),
    replaceLink(boot.initramfs.path, path.join(directory, machineFiles.initramfs)),
  ])
}

async function replaceLink(from: string, to: string): Promise<void> {
  try {
    await link(from, to)
  } catch (error) {
    if (!isSystemError(error, 'EEXIST')) throw error
    await rm(to, { force: true })
    await link(from, to)
  }
}

/**
 * What is started.
 *
 * @param saved What the machine was when its state was saved, which is to be loaded: its devices are those again.
 */
export async function machineSpec(
  host: Host,
  record: SandboxRecord,
  { cid, port }: { cid: number; port: number },
  saved?: MachineRecord,
): Promise<MachineSpec> {
  const directory = host.store.directoryOf(record.id)
  const configuration = await host.configuration()
  const { first, count } = configuration.host.vmUsers
  const isRoot = process.getuid?.() === 0
  if (isRoot && cid - FIRST_CID >= count)
    throw new BandSoxError('host-resource', `no user is left for a machine with CID ${cid}: there are ${count}`, {
      hint: 'give machines more of them: host.vmUsers.count in the configuration file',
    })
  // One that was imported may have been killed: its kernel replays the journal, and writes for that alone.
  const isRootWritable = record.hasOwnRoot
  const { id: sandboxId, vcpu, memoryMib, vsock } = record
  return {
    ...{ sandboxId, directory, vcpu, memoryMib, vsock, cid, port, isRootWritable },
    uid: first + (cid - FIRST_CID),
    files: isRootWritable ? { ...machineFiles, root: IMPORTED_ROOT } : machineFiles,
    ...(record.layers.length > 0 && { layers: record.layers }),
    hostname: hostnameOf(record),
    limits: { ...record.limits, processes: null },
    serialLine: saved?.serial?.line ?? configuration.qemu.serialLine,
  }
}

/** The disks that a machine writes to become its own user's; what lies below is others' as well. */
async function ownDisks({ directory, files, layers, isRootWritable, uid }: MachineSpec): Promise<void> {
  if (process.getuid?.() !== 0) return
  const written = [layers?.at(-1) ?? files.overlay, ...(isRootWritable === true ? [files.root] : [])]
  for (const disk of written) await chown(path.join(directory, disk), uid, uid)
}

/** @throws What ended the VMM, with what guest and VMM printed last, rather than a mere lack of an answer. */
async function whenReady(
  machine: Machine,
  agent: Agent,
  spec: MachineSpec,
  {
    printed: after,
    hasVsock,
    timeoutMs,
    signal,
    boots,
  }: {
    printed: ConsolePosition | undefined
    hasVsock: boolean
    boots: boolean
    timeoutMs: number
    signal: AbortSignal | undefined
  },
): ReturnType<Agent['waitUntilReady']> {
  const ended = new AbortController()
  machine.exited().then(
    (exit) => ended.abort(new BandSoxError('boot-failed', describeExit(exit))),
    (error: unknown) => ended.abort(error),
  )
  const either = signal === undefined ? ended.signal : AbortSignal.any([signal, ended.signal])
  try {
    const startedAt = performance.now()
    if (boots)
      await consoleSaysReady(spec.directory, {
        port: spec.port,
        hasVsock,
        after,
        timeoutMs: timeoutMs * HINT_SHARE,
        signal: either,
      })
    return await agent.waitUntilReady({ timeoutMs: timeoutMs - (performance.now() - startedAt), signal: either })
  } catch (error) {
    signal?.throwIfAborted()
    throw await explained(error, spec.sandboxId, spec.directory, after, timeoutMs)
  }
}

/** An error of a boot, with all that guest and VMM have said of it. */
async function explained(
  error: unknown,
  id: string,
  directory: string,
  after: ConsolePosition | undefined,
  timeoutMs: number,
): Promise<BandSoxError> {
  const [printed, { run }] = await Promise.all([consoleTail(directory, after), readRun(directory)])
  const words = run === undefined ? '' : describeLastWords(await lastWords(directory, run.startedAt))
  const code = error instanceof BandSoxError ? error.code : 'boot-failed'
  const within = code === 'agent-unreachable' ? ` within ${timeoutMs} ms` : ''
  return new BandSoxError(code, `cannot boot sandbox ${id}${within}: ${messageOf(error)}${words}${quote(printed)}`, {
    cause: error,
    hint: 'the lines above are the last of its console',
  })
}

const quote = (printed: string): string =>
  printed === '' ? '; it printed nothing' : `; it printed:\n${printed.replace(/^/gm, '  | ')}`

/** The guest's own stages, told apart from ours, in their order: milliseconds since its kernel began. */
function guestStages(stages: Record<string, number> = {}): Record<string, number> {
  const inOrder = Object.entries(stages).sort(([, a], [, b]) => a - b)
  return Object.fromEntries(inOrder.map(([stage, ms]) => [`guest.${stage}`, ms]))
}
