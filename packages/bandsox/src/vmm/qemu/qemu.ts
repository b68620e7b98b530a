/** The QEMU driver: runs everywhere, with KVM where it works and by emulation where it does not. */
import { chown, mkdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, type VsockMode } from '@bandsox/sdk'
import { consoleConfig, SANDBOX_MARK, type ShimConfig, startShim } from '../../process/shim.js'
import { type CgroupSupport, cgroupSupport, machineCgroup, requireLimits } from '../cgroup.js'
import { type Acceleration, type HostTools, probeAcceleration } from '../host.js'
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
import { findQemu, findVsockBackend, type VsockBackend } from './host.js'
import { attachMachine } from './machine.js'
import { checkLayer, createLayer } from './qcow2.js'

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

export function qemuDriver(tools: HostTools): Vmm {
  // The host does not change its hardware while we run: each is found out once.
  const qemu = lazily(() => findQemu(tools))
  const acceleration = lazily(() => probeAcceleration(tools))
  const cgroups = lazily(() => cgroupSupport())
  return {
    async start(spec) {
      const [{ program, version }, accelerator, backend, groups] = await Promise.all([
        qemu(),
        acceleration(),
        findVsockBackend(tools),
        cgroups(),
        makeVsockFolder(spec),
      ])
      requireLimits(spec.limits, groups)
      const { vsock, reason: vsockReason } = chooseVsock(spec.vsock, backend)
      const config = await prepare(spec, program, accelerator, vsock, groups)
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
    },
    load: async () => {
      throw new BandSoxError('host-unsupported', 'the QEMU driver cannot load the state of a machine yet')
    },
    mergeState: async () => {
      throw new BandSoxError('host-unsupported', 'the QEMU driver cannot merge states of a machine yet')
    },
    // States come with the product's snapshots.
    makeLayer: createLayer,
    checkLayer,
    capabilities: async () => ({
      states: [],
      vsockAfterPause: true,
      networkOverrides: false,
      vsockOverride: false,
      clockRealtime: false,
      diskLayers: true,
    }),
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

async function prepare(
  spec: MachineSpec,
  program: string,
  accelerator: Acceleration,
  vsock: UsableBackend | null,
  groups: CgroupSupport,
): Promise<ShimConfig> {
  await checkLayers(spec)
  const isRoot = process.getuid?.() === 0
  const choice: QemuChoice = {
    program,
    accelerator: accelerator.kind,
    vsock: vsock?.kind ?? null,
    serialLine: serialLineOf(spec),
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
    },
    files,
    console: consoleConfig,
    ...(vsock !== null && { vsock: vsockConfig(spec, vsock.kind) }),
    serial:
      serialLineOf(spec) === 'uart'
        ? { kind: 'uart', socket: SERIAL_SOCKET }
        : { kind: 'port', socket: SERIAL_SOCKET, line: AGENT_SERIAL_SOCKET },
    monitor: { kind: 'qmp', socket: EVENTS_SOCKET },
    ...(groups.usable && { cgroup: machineCgroup(groups.parent, spec, accelerator.kind) }),
    remove: [],
  }
}

/** Before QEMU opens any: what their headers say, it would do. */
async function checkLayers({ directory, files, layers = [] }: MachineSpec): Promise<void> {
  if (layers.length === 0) return
  const { size } = await stat(path.join(directory, files.overlay))
  for (const layer of layers) await checkLayer(path.join(directory, layer), size)
}

function vsockConfig(spec: MachineSpec, backend: 'kernel' | 'daemon'): NonNullable<ShimConfig['vsock']> {
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
  }
}

async function makeVsockFolder({ directory, uid }: MachineSpec): Promise<void> {
  const folder = path.join(directory, VSOCK_FOLDER)
  await mkdir(folder, { mode: 0o700, recursive: true })
  if (process.getuid?.() === 0) await chown(folder, uid, uid)
}
