/** QEMU's command line and inherited descriptors for a machine. Pure. */
import type { ShimConfig } from '../../process/shim.js'
import { CONSOLE_UART, kernelCommandLine } from '../kernel-command-line.js'
import type { MachineLimits } from '../limits.js'
import type { MachineSpec, SerialLine } from '../vmm.js'

export const QMP_SOCKET = 'qmp.sock'
/** A monitor for the shim alone, which holds its only connection. */
export const EVENTS_SOCKET = 'events.sock'
/** The far end of the guest's virtio-serial port; the shim connects it. */
export const AGENT_SERIAL_SOCKET = 'agent.sock'
/** The port's name in the guest. */
const AGENT_SERIAL_PORT = 'bandsox.agent'
/** The daemon's own folder: it runs as the VM's user and makes its sockets itself. */
export const VSOCK_FOLDER = 'vsock'
export const DAEMON_SOCKET = `${VSOCK_FOLDER}/daemon.sock`
export const VHOST_USER_SOCKET = `${VSOCK_FOLDER}/vhost.sock`

/** Of the daemon's device, and of its chardev: vsock-plug.ts takes both out and puts them in while the machine runs. */
export const VSOCK_DEVICE = 'vsock'
/** Where that device is plugged in: the bus of the other devices takes none while the machine runs. */
export const VSOCK_PORT = 'vsock-port'

/** Versioned, so that a snapshot finds the same machine under a newer QEMU; the oldest QEMU that we take has it. */
export const MACHINE_TYPE = 'pc-q35-7.2'

/** `-sandbox`: QEMU's own seccomp filter. With `spawn` denied it can neither fork nor execute anything, ever. */
const SECCOMP = 'on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny'

/** Under emulation only: they make a boot a third shorter, and weaken the guest's own isolation. */
const EMULATION_PARAMETERS = [
  'mitigations=off',
  'nopti',
  'nokaslr',
  'no_timer_check',
  'noreplace-smp',
  'cryptomgr.notests',
]

export interface QemuChoice {
  program: string
  accelerator: 'kvm' | 'tcg'
  vsock: 'kernel' | 'daemon' | null
  /** The daemon's device is plugged in when the machine runs, as no saved state has one. Default false. */
  plugsVsockLater?: boolean
  /** `uart`: as on a VMM without virtio-serial. */
  serialLine: SerialLine
  /** A state to begin with, by the names of its files. */
  load?: { memory: string; devices: string }
}

type InheritedFile = ShimConfig['files'][number]

/** The first descriptor that the shim passes on; SHIM.md. */
const FIRST_FD = 3

/**
 * A `q35` without its legacy devices. Its HPET gives the guest a reference for the TSC under emulation; `microvm` has none and
 * hangs in `calibrate_delay` on a busy host, which is why it is not used.
 */
export function qemuCommandLine(spec: MachineSpec, choice: QemuChoice): { argv: string[]; files: InheritedFile[] } {
  const files: InheritedFile[] = []
  const inherit = (file: InheritedFile): number => files.push(file) + FIRST_FD - 1
  const qmp = inherit({ listen: QMP_SOCKET })
  const events = inherit({ listen: EVENTS_SOCKET })
  const isKvm = choice.accelerator === 'kvm'
  const argv = [
    choice.program,
    ...['-name', spec.sandboxId],
    ...['-sandbox', SECCOMP],
    '-nodefaults',
    '-no-user-config',
    ...['-display', 'none'],
    '-no-reboot',
    ...[
      '-machine',
      `${MACHINE_TYPE},memory-backend=ram0,usb=off,smbus=off,sata=off,vmport=off,i8042=off,hpet=on,graphics=off`,
    ],
    ...['-accel', isKvm ? 'kvm' : 'tcg,thread=multi'],
    ...['-cpu', isKvm ? 'host' : 'max'],
    ...['-smp', String(spec.vcpu)],
    ...['-m', `${spec.memoryMib}M`],
    ...['-object', `${memoryBackend(choice)},id=ram0,size=${spec.memoryMib}M`],
    // SeaBIOS of QEMU 10 puts its ACPI tables where the initramfs of a PVH kernel is loaded; qboot does not.
    ...['-bios', 'qboot.rom'],
    ...['-kernel', spec.files.kernel],
    ...['-initrd', spec.files.initramfs],
    ...[
      '-append',
      kernelCommandLine(
        spec,
        choice.serialLine === 'uart' ? CONSOLE_UART : AGENT_SERIAL_PORT,
        isKvm ? [] : EMULATION_PARAMETERS,
      ),
    ],
    ...drive('root', `${raw(spec.files.root)},readonly=${spec.isRootWritable === true ? 'off' : 'on'}`, spec.limits),
    ...overlay(spec),
    ...['-chardev', 'stdio,id=console,signal=off', '-serial', 'chardev:console'],
    ...['-chardev', `socket,id=qmp,fd=${qmp},server=on,wait=off`, '-mon', 'chardev=qmp,mode=control'],
    ...['-chardev', `socket,id=events,fd=${events},server=on,wait=off`, '-mon', 'chardev=events,mode=control'],
    ...serialPort(choice.serialLine, inherit),
    // Gives back what the guest has freed, and takes what it is asked for: but never what the guest needs.
    ...['-device', 'virtio-balloon-pci,id=balloon,deflate-on-oom=on,free-page-reporting=on'],
    ...['-object', 'rng-random,id=rng0,filename=/dev/urandom', '-device', 'virtio-rng-pci,rng=rng0'],
    // In every machine, so that a state of one without vsock can be loaded where there is to be some.
    ...['-device', `pcie-root-port,id=${VSOCK_PORT},chassis=1,slot=1`],
    ...vsockDevice(spec, choice, inherit),
    ...(choice.load === undefined ? [] : ['-incoming', `fd:${inherit({ read: choice.load.devices })}`]),
  ]
  return { argv, files }
}

function memoryBackend({ load, vsock }: QemuChoice): string {
  // vhost-user needs the guest's memory shared with the daemon: the file is a copy then.
  if (load !== undefined && vsock === 'daemon') return `memory-backend-file,mem-path=${load.memory},share=on`
  // Many machines map the file; what each of them writes is its own.
  if (load !== undefined) return `memory-backend-file,mem-path=${load.memory},share=off`
  return vsock === 'daemon' ? 'memory-backend-memfd,share=on' : 'memory-backend-ram'
}

/** The disks, in the guest's order, and the group in which they are throttled as one. */
const DRIVES = ['root', 'overlay'] as const
const THROTTLE_GROUP = 'disks'
const deviceOf = (drive: string) => `${drive}-disk`

/**
 * A host whose disk is full stops the machine, as it is, until there is room and someone resumes it: the guest sees no error, and
 * nothing is lost. Any other error is the guest's to deal with, as of a real disk.
 */
const ON_ERROR = 'werror=enospc,rerror=report'

function drive(id: (typeof DRIVES)[number], options: string, limits: MachineLimits): string[] {
  return [
    ...['-drive', `id=${id},${options},if=none${throttling(limits)}`],
    ...['-device', `virtio-blk-pci,id=${deviceOf(id)},drive=${id},${ON_ERROR}`],
  ]
}

const raw = (file: string): string => `file=${file},format=raw`

/**
 * The writable disk: one raw file, or layers over it. For the guest, and for a state that is loaded, it is the same device. What is
 * below a layer is given by name, never taken from its header; with `-drive`, unlike `-blockdev`, limits can be changed as of any disk.
 */
function overlay({ files, layers = [], limits }: MachineSpec): string[] {
  const unmapping = 'discard=unmap,detect-zeroes=unmap'
  const top = layers.at(-1)
  if (top === undefined) return drive('overlay', `${raw(files.overlay)},${unmapping}`, limits)
  const lower = [files.overlay, ...layers.slice(0, -1)]
  const nodes = lower.map((file, index) => {
    const what = index === 0 ? 'driver=raw' : `driver=qcow2,backing=${nodeOf(index - 1)}`
    const below = `node-name=${nodeOf(index)},read-only=on,auto-read-only=off,file.driver=file,file.filename=${file}`
    return ['-blockdev', `${what},${below}`]
  })
  const options = `file=${top},format=qcow2,backing=${nodeOf(lower.length - 1)},${unmapping}`
  return [...nodes.flat(), ...drive('overlay', options, limits)]
}

const nodeOf = (index: number): string => `layer${index}`

function throttling({ diskBytesPerSecond: bytes, diskOperationsPerSecond: operations }: MachineLimits): string {
  const limit = (name: string, value: number | null) =>
    value === null ? [] : [`throttling.${name}=${value}`, `throttling.${name}-max=${value}`]
  const limits = [...limit('bps-total', bytes), ...limit('iops-total', operations)]
  return limits.length === 0 ? '' : `,throttling.group=${THROTTLE_GROUP},${limits.join(',')}`
}

/**
 * Arguments of `block_set_io_throttle`, one set per disk. A disk with a limit joins the group and sets its limits, one without
 * leaves it: so all of them are told.
 */
export function throttleCommands(
  limits: Pick<MachineLimits, 'diskBytesPerSecond' | 'diskOperationsPerSecond'>,
): Record<string, unknown>[] {
  const bps = limits.diskBytesPerSecond ?? 0
  const iops = limits.diskOperationsPerSecond ?? 0
  return DRIVES.map((id) => ({
    // The disk is not the PCI device that has the id, but the virtio device in it.
    ...{
      id: `/machine/peripheral/${deviceOf(id)}/virtio-backend`,
      group: THROTTLE_GROUP,
      bps,
      iops,
      bps_rd: 0,
      bps_wr: 0,
      iops_rd: 0,
      iops_wr: 0,
    },
    ...(bps > 0 && { bps_max: bps }),
    ...(iops > 0 && { iops_max: iops }),
  }))
}

function serialPort(line: SerialLine, inherit: (file: InheritedFile) => number): string[] {
  if (line === 'uart') return []
  const fd = inherit({ listen: AGENT_SERIAL_SOCKET })
  return [
    ...['-chardev', `socket,id=agent,fd=${fd},server=on,wait=off`],
    ...['-device', 'virtio-serial-pci,max_ports=2'],
    ...['-device', `virtserialport,chardev=agent,name=${AGENT_SERIAL_PORT}`],
  ]
}

function vsockDevice(spec: MachineSpec, choice: QemuChoice, inherit: (file: InheritedFile) => number): string[] {
  if (choice.vsock === null || (choice.vsock === 'daemon' && choice.plugsVsockLater === true)) return []
  if (choice.vsock === 'kernel') {
    return ['-device', `vhost-vsock-pci,guest-cid=${spec.cid},vhostfd=${inherit({ open: '/dev/vhost-vsock' })}`]
  }
  return [
    ...['-chardev', `socket,id=${VSOCK_DEVICE},path=${VHOST_USER_SOCKET}`],
    ...['-device', `vhost-user-vsock-pci,id=${VSOCK_DEVICE},chardev=${VSOCK_DEVICE},bus=${VSOCK_PORT}`],
  ]
}
