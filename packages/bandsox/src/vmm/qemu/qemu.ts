/** The QEMU driver: runs everywhere, with KVM where it works and by emulation where it does not. */
import { chown, mkdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, type VsockMode } from '@bandsox/sdk'
import { consoleConfig, SANDBOX_MARK, type ShimConfig, startShim } from '../../process/shim.js'
import { type CgroupSupport, cgroupSupport, machineCgroup, requireLimits } from '../cgroup.js'
import { type Acceleration, accelerationBy, type HostTools, type Kvm, probeKvm } from '../host.js'
import { hostCpu } from '../host-cpu.js'
import { lazily } from '../lazily.js'
import { linkOrCopyProgram } from '../link-or-copy.js'
import { linksOf, SERIAL_SOCKET, VSOCK_SOCKET } from '../links.js'
import { attachStarted } from '../shim-machine.js'
import type { MachineFacts, MachineSpec, SerialLine, Vmm } from '../vmm.js'
import {
  AGENT_SERIAL_SOCKET,
  DAEMON_SOCKET,
  EVENTS_SOCKET,
  type QemuChoice,
  qemuCommandLine,
  VHOST_USER_SOCKET,
  VSOCK_FOLDER,
} from './command-line.js'
import { qemuFingerprint } from './fingerprint.js'
import { findQemu, findVsockBackend, type VsockBackend } from './host.js'
import { beginOfWords, endUnloaded, explained, requireLoadable } from './load.js'
import { attachMachine, onlyWhole, type QemuMachine } from './machine.js'
import { checkLayer, createLayer } from './qcow2.js'
import { copyMemory, linkLoaded, loadedFiles, removeLoaded, SHARED_MEMORY, STATE_FOLDERS } from './state-files.js'

/** Descriptors a VMM needs: disks, sockets, eventfds. The daemon holds one per vsock connection, up to 1023. */
const MAX_FILES = 4096
/**
 * Threads of a VM's own user. It bounds a VMM that was taken over; an honest VM has 80 at the most, and VMs of several storage
 * folders may have one user.
 */
const MAX_PROCESSES = 1024
const VSOCK_DAEMON_FILE = 'vhost-device-vsock'
/** The daemon's buffer for what the guest sends to one connection; its default of 64 KiB leaves throughput on the table. */
const VSOCK_TX_BUFFER_BYTES = 262_144

export function qemuDriver(tools: HostTools, probed: () => Promise<Kvm> = lazily(() => probeKvm(tools))): Vmm {
  // The host does not change its hardware while we run: each is found out once.
  const qemu = lazily(() => findQemu(tools))
  const cgroups = lazily(() => cgroupSupport())

  /** Starts the process, which boots, or loads the state whose files are in the VM's directory. */
  async function startProcess(
    spec: MachineSpec,
    loads: boolean,
  ): Promise<{ machine: QemuMachine; facts: MachineFacts }> {
    const [{ program, version }, kvm, backend, groups] = await Promise.all([
      qemu(),
      probed(),
      findVsockBackend(tools),
      cgroups(),
      makeVsockFolder(spec),
    ])
    requireLimits(spec.limits, groups)
    const accelerator = accelerationBy(kvm)
    const { vsock, reason: vsockReason } = loads ? vsockOfLoaded(spec.vsock, backend) : chooseVsock(spec.vsock, backend)
    const config = await prepare(spec, { program, accelerator, vsock, groups, loads })
    await startShim(tools.shim, spec.directory, config)
    const facts: MachineFacts = {
      vmm: 'qemu',
      version,
      accelerator: accelerator.kind,
      acceleratorReason: accelerator.reason,
      vsock: vsock === null ? null : { backend: vsock.kind, socket: VSOCK_SOCKET },
      vsockReason,
      serial: { line: serialLineOf(spec), socket: SERIAL_SOCKET },
    }
    const machine = await attachStarted(spec.directory, () => attachMachine(tools.shim, spec.directory))
    return { machine, facts }
  }

  return {
    start: (spec) => startProcess(spec, false),
    async load(spec, state, options = {}) {
      requireLoadable(options)
      options.signal?.throwIfAborted()
      const { directory } = spec
      const begin = await beginOfWords(directory)
      await linkLoaded(directory, state)
      let started: Awaited<ReturnType<typeof startProcess>> | undefined
      try {
        started = await startProcess(spec, true)
        const { resume = true } = options
        await started.machine.awaitLoaded(resume, options.signal)
        if (resume) await started.machine.attachVsock()
        return started
      } catch (error) {
        if (started !== undefined) await endUnloaded(started.machine)
        await removeLoaded(directory) // the shim's to remove, if it had come to that
        options.signal?.throwIfAborted()
        throw started === undefined && !isOfBoot(error) ? error : await explained(error, directory, begin)
      }
    },
    mergeState: async () => {
      throw onlyWhole('merge states')
    },
    makeLayer: createLayer,
    checkLayer,
    capabilities: async () => ({
      states: ['full'],
      vsockAfterPause: true,
      networkOverrides: false,
      vsockOverride: false,
      clockRealtime: false,
      diskLayers: true,
    }),
    async fingerprint(spec) {
      const [{ version }, kvm, backend, cpu] = await Promise.all([qemu(), probed(), findVsockBackend(tools), hostCpu()])
      return qemuFingerprint(spec, {
        version,
        accelerator: accelerationBy(kvm).kind,
        vsock: chooseVsock(spec.vsock, backend).vsock?.kind ?? null,
        ...{ cpu, tscKhz: kvm.tscKhz },
      })
    },
    program: async () => (await qemu()).program,
    attach: (directory) => attachMachine(tools.shim, directory),
    links: linksOf,
    clear: async () => undefined, // the next start makes what it needs anew
  }
}

const serialLineOf = ({ serialLine = 'port' }: MachineSpec): SerialLine => serialLine

type UsableBackend = Exclude<VsockBackend, { kind: 'none' }>

/**
 * @returns null and why, for a machine whose agent is reached over the serial line alone.
 * @throws `vsock-unavailable` when it must be there and there is no backend.
 */
export function chooseVsock(
  mode: VsockMode,
  backend: VsockBackend,
): { vsock: UsableBackend; reason?: undefined } | { vsock: null; reason: string } {
  if (mode === 'off') return { vsock: null, reason: 'vsock is off for this sandbox' }
  if (backend.kind !== 'none') return { vsock: backend }
  if (mode === 'auto') return { vsock: null, reason: backend.reason }
  throw new BandSoxError('vsock-unavailable', `cannot start a machine with vsock: ${backend.reason}`, {
    hint: backend.hint,
  })
}

/**
 * A daemon shares the guest's memory, which a loaded machine maps privately: where it must be there all the same, the memory is copied.
 *
 * @throws as {@link chooseVsock}.
 */
export function vsockOfLoaded(mode: VsockMode, backend: VsockBackend): ReturnType<typeof chooseVsock> {
  const chosen = chooseVsock(mode, backend)
  if (chosen.vsock?.kind !== 'daemon' || mode === 'on') return chosen
  const reason = 'vhost-device-vsock needs a copy of the memory that it was loaded from; the serial line is as quick'
  return { vsock: null, reason: `${reason} (--vsock on makes one)` }
}

/** It has ended before it could be attached to: then its words say why. */
const isOfBoot = (error: unknown): boolean => error instanceof BandSoxError && error.code === 'boot-failed'

async function prepare(
  spec: MachineSpec,
  {
    program,
    accelerator,
    vsock,
    groups,
    loads,
  }: {
    program: string
    accelerator: Acceleration
    vsock: UsableBackend | null
    groups: CgroupSupport
    loads: boolean
  },
): Promise<ShimConfig> {
  await checkLayers(spec)
  // The device comes when the machine runs: no state has it.
  const sharesMemory = loads && vsock?.kind === 'daemon'
  if (sharesMemory) await copyMemory(spec.directory, path.join(spec.directory, loadedFiles.memory), spec.uid)
  const isRoot = process.getuid?.() === 0
  const choice: QemuChoice = {
    program,
    accelerator: accelerator.kind,
    vsock: vsock?.kind ?? null,
    serialLine: serialLineOf(spec),
    ...(loads && { load: { ...loadedFiles, ...(sharesMemory && { memory: SHARED_MEMORY }) } }),
    ...(sharesMemory && { plugsVsockLater: true }),
  }
  const { argv, files } = qemuCommandLine(spec, choice)
  if (vsock?.kind === 'daemon') await linkOrCopyProgram(vsock.program, path.join(spec.directory, VSOCK_DAEMON_FILE))
  return {
    version: 1,
    sandbox: spec.sandboxId,
    vmm: {
      argv,
      env: { [SANDBOX_MARK]: spec.sandboxId },
      ...(isRoot && {
        uid: spec.uid,
        gid: spec.uid,
        maxProcesses: spec.limits.processes ?? MAX_PROCESSES,
        groups: accelerator.kind === 'kvm' ? accelerator.groups : [],
      }),
      maxFiles: MAX_FILES,
      ...(loads && !sharesMemory && { readOnly: loadedFiles.memory }),
    },
    files,
    console: consoleConfig,
    ...(vsock !== null && { vsock: vsockConfig(spec, vsock.kind, sharesMemory) }),
    serial:
      serialLineOf(spec) === 'uart'
        ? { kind: 'uart', socket: SERIAL_SOCKET, ...(loads && { awake: true }) }
        : { kind: 'port', socket: SERIAL_SOCKET, line: AGENT_SERIAL_SOCKET },
    monitor: { kind: 'qmp', socket: EVENTS_SOCKET },
    ...(groups.usable && { cgroup: machineCgroup(groups.parent, spec, accelerator.kind) }),
    remove: [],
    removeFolders: STATE_FOLDERS,
  }
}

/** Before QEMU opens any: what their headers say, it would do. */
async function checkLayers({ directory, files, layers = [] }: MachineSpec): Promise<void> {
  if (layers.length === 0) return
  const { size } = await stat(path.join(directory, files.overlay))
  for (const layer of layers) await checkLayer(path.join(directory, layer), size)
}

/** @param isShut Hosts are kept from the daemon until its device is there. */
function vsockConfig(
  spec: MachineSpec,
  backend: 'kernel' | 'daemon',
  isShut: boolean,
): NonNullable<ShimConfig['vsock']> {
  if (backend === 'kernel') return { kind: 'kernel', socket: VSOCK_SOCKET, cid: spec.cid }
  return {
    kind: 'daemon',
    socket: VSOCK_SOCKET,
    argv: [
      `./${VSOCK_DAEMON_FILE}`,
      ...['--guest-cid', String(spec.cid)],
      ...['--socket', VHOST_USER_SOCKET],
      ...['--uds-path', DAEMON_SOCKET],
      ...['--tx-buffer-size', String(VSOCK_TX_BUFFER_BYTES)],
    ],
    waitFor: VHOST_USER_SOCKET,
    daemonSocket: DAEMON_SOCKET,
    ...(isShut && { shut: true }),
  }
}

async function makeVsockFolder({ directory, uid }: MachineSpec): Promise<void> {
  const folder = path.join(directory, VSOCK_FOLDER)
  await mkdir(folder, { mode: 0o700, recursive: true })
  if (process.getuid?.() === 0) await chown(folder, uid, uid)
}
