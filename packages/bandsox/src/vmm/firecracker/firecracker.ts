/** The Firecracker driver: where KVM works, the machine for production: quick, small, and in a jail. */
import { BandSoxError } from '@bandsox/sdk'
import { missingPrivileges } from '../../process/privileges.js'
import { consoleConfig, SANDBOX_MARK, type ShimConfig, startShim } from '../../process/shim.js'
import { type CgroupSupport, cgroupSupport, machineCgroup, requireLimits } from '../cgroup.js'
import { type HostTools, type Kvm, probeKvm } from '../host.js'
import { hostCpu } from '../host-cpu.js'
import { lazily } from '../lazily.js'
import { linksOf, SERIAL_SOCKET, VSOCK_SOCKET } from '../links.js'
import { attachStarted } from '../shim-machine.js'
import type { MachineFacts, MachineSpec, Vmm } from '../vmm.js'
import {
  FIRECRACKER_LOG,
  firecrackerArguments,
  folderFiles,
  instanceId,
  jailerCommand,
  METRICS_LOG,
  vmConfiguration,
} from './configuration.js'
import { firecrackerFingerprint } from './fingerprint.js'
import { type Beginning, type Folder, folderOf, JAIL, JAILED_PROGRAM, makeFolder, removeFolders } from './folder.js'
import { chooseJail, type FoundFirecracker, firecrackerFinder, type Jail, type JailerMode } from './host.js'
import { changedLimits, loadState, snapshotLoad } from './load.js'
import { attachMachine, type FirecrackerMachine } from './machine.js'
import { mergeState } from './merge.js'
import { capabilitiesOf } from './version.js'

/** Descriptors: one per vsock connection, up to 1023, and some for disks and events. */
const MAX_FILES = 4096
/** Threads of a VM's own user; Firecracker has one per processor and two more. */
const MAX_PROCESSES = 1024

export interface FirecrackerSettings {
  jailer: JailerMode
}

/** What a start has found out before it makes anything. */
interface Choice extends FoundFirecracker {
  kvm: Kvm & { usable: true }
  jail: Jail
  groups: CgroupSupport
}

export function firecrackerDriver(
  tools: HostTools,
  settings: () => Promise<FirecrackerSettings>,
  probed: () => Promise<Kvm> = lazily(() => probeKvm(tools)),
): Vmm {
  const firecracker = firecrackerFinder(tools)
  const cgroups = lazily(() => cgroupSupport())

  async function choose(spec: MachineSpec): Promise<Choice> {
    const [found, kvm, groups, { jailer }] = await Promise.all([firecracker(), probed(), cgroups(), settings()])
    if (!kvm.usable) throw withoutKvm(kvm.reason)
    requireLimits(spec.limits, groups)
    const jail = await chooseJail(jailer, found, isRoot())
    if (jail.jailer === undefined && kvm.groups === undefined)
      throw new BandSoxError('host-unsupported', `Firecracker cannot open KVM without a jail: ${kvm.reason}`, {
        hint: `make that change, or have it jailed (${jail.reason})`,
      })
    if (jail.jailer === undefined && spec.networkNamespace !== undefined)
      throw new BandSoxError('host-unsupported', `cannot put a machine into a network namespace: ${jail.reason}`)
    return { ...found, kvm, jail, groups }
  }

  const requireRawDisks = ({ layers = [] }: MachineSpec): void => {
    if (layers.length > 0) throw withoutLayers()
  }

  /** Starts the process, which boots by itself, or waits to be told what to load. */
  async function startProcess(
    spec: MachineSpec,
    begin: Beginning,
  ): Promise<{ machine: FirecrackerMachine; facts: MachineFacts }> {
    const choice = await choose(spec)
    const isJailed = choice.jail.jailer !== undefined
    const folder = folderOf(spec, isJailed)
    await makeFolder(spec, folder, isJailed, choice.program, begin)
    try {
      await startShim(tools.shim, spec.directory, shimConfig(spec, choice, folder, 'boot' in begin))
    } catch (error) {
      await removeFolders(spec.directory) // the shim's to remove, if it had come to that
      throw error
    }
    const machine = await attachStarted(spec.directory, () => attachMachine(tools.shim, spec.directory))
    return { machine, facts: factsOf(spec, choice) }
  }

  return {
    async start(spec) {
      requireRawDisks(spec)
      return await startProcess(spec, { boot: vmConfiguration(spec) })
    },
    async load(spec, state, options = {}) {
      requireRawDisks(spec)
      const snapshot = snapshotLoad((await firecracker()).number, options)
      const started = await startProcess(spec, { load: state })
      await loadState(started.machine, snapshot, changedLimits(spec.limits, options.savedLimits), options.signal)
      return started
    },
    mergeState: (base, diffs, folder, signal) => mergeState(tools.shim, base, diffs, folder, signal),
    makeLayer: async () => await Promise.reject(withoutLayers()),
    checkLayer: async () => await Promise.reject(withoutLayers()),
    capabilities: async () => capabilitiesOf((await firecracker()).number),
    async fingerprint(spec) {
      const [{ version }, cpu, { tscKhz }] = await Promise.all([firecracker(), hostCpu(), probed()])
      return firecrackerFingerprint(spec, { version, cpu, tscKhz })
    },
    program: async () => (await firecracker()).program,
    attach: (directory) => attachMachine(tools.shim, directory),
    links: linksOf,
    clear: removeFolders,
  }
}

const withoutKvm = (reason: string): BandSoxError =>
  new BandSoxError('host-unsupported', `Firecracker needs KVM, which is not usable here: ${reason}`, {
    hint: 'let QEMU emulate: --vmm qemu, or auto',
  })

const withoutLayers = (): BandSoxError =>
  new BandSoxError('host-unsupported', 'Firecracker has no disks in layers: its disks are raw', {
    hint: 'give the machine a copy of the disk, or let QEMU run it: --vmm qemu',
  })

const isRoot = (): boolean => process.getuid?.() === 0

function factsOf(spec: MachineSpec, { version, jail }: Choice): MachineFacts {
  return {
    vmm: 'firecracker',
    version,
    accelerator: 'kvm',
    vsock: spec.vsock === 'off' ? null : { backend: 'vmm', socket: VSOCK_SOCKET },
    vsockReason: spec.vsock === 'off' ? 'vsock is off for this sandbox' : undefined,
    serial: { line: 'uart', socket: SERIAL_SOCKET },
    jailed: jail.jailer !== undefined,
    jailReason: jail.reason,
  }
}

function shimConfig(spec: MachineSpec, choice: Choice, folder: Folder, boots: boolean): ShimConfig {
  const inside = (name: string) => `${folder.path}/${name}`
  const output = (fifo: string, log: string) => ({ fifo: inside(fifo), log, ...(isRoot() && { uid: spec.uid }) })
  return {
    version: 1,
    sandbox: spec.sandboxId,
    vmm: {
      ...command(spec, choice, folder, boots),
      // Its log has the time of the host's zone, unless it is told of another; in a jail there is none to be found.
      env: { [SANDBOX_MARK]: spec.sandboxId, TZ: 'UTC0' },
      maxFiles: MAX_FILES,
      ...(isRoot() && missingPrivileges(['SYS_ADMIN']).length === 0 && { newPidNamespace: true }),
    },
    files: [],
    console: consoleConfig,
    ...(spec.vsock !== 'off' && {
      vsock: { kind: 'vmm', socket: VSOCK_SOCKET, vmmSocket: inside(folderFiles.vsock) } as const,
    }),
    serial: { kind: 'uart', socket: SERIAL_SOCKET, ...(!boots && { awake: true }) },
    monitor: { kind: 'firecracker', socket: inside(folderFiles.api) },
    outputs: [output(folderFiles.log, FIRECRACKER_LOG), output(folderFiles.metrics, METRICS_LOG)],
    ...(choice.groups.usable && { cgroup: machineCgroup(choice.groups.parent, spec, 'kvm') }),
    remove: [],
    removeFolders: [folder.top],
  }
}

function command(
  spec: MachineSpec,
  { jail, kvm }: Choice,
  folder: Folder,
  boots: boolean,
): Pick<ShimConfig['vmm'], 'argv' | 'folder' | 'uid' | 'gid' | 'groups' | 'maxProcesses'> {
  if (jail.jailer !== undefined) {
    const program = `${spec.directory}/${JAILED_PROGRAM}`
    return {
      argv: jailerCommand(spec, {
        jailer: jail.jailer,
        program,
        base: `${spec.directory}/${JAIL}`,
        boots,
        maxFiles: MAX_FILES,
      }),
    }
  }
  return {
    argv: [`./${folderFiles.program}`, '--id', instanceId(spec.sandboxId), ...firecrackerArguments(boots)],
    folder: folder.path,
    ...(isRoot() && {
      uid: spec.uid,
      gid: spec.uid,
      groups: kvm.groups ?? [],
      maxProcesses: spec.limits.processes ?? MAX_PROCESSES,
    }),
  }
}
