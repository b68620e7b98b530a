/** What a virtual machine monitor does for us, whichever it is. Nothing above `vmm/` asks which it has. */
import type { VsockMode } from '@bandsox/sdk'
import type { Link } from '../link/link.js'
import type { VmmExit } from '../process/shim.js'
import type { LiveLimits, MachineLimits } from './limits.js'

/** A virtio-serial port, or the console's UART, which every VMM has and which is slow. */
export type SerialLine = 'port' | 'uart'

/** A machine to be started, in its own directory. File names are relative to it. */
export interface MachineSpec {
  sandboxId: string
  /** The VM's own directory; absolute. VMM and shim run there. */
  directory: string
  vcpu: number
  memoryMib: number
  files: { kernel: string; initramfs: string; root: string; overlay: string }
  /** The root disk is this machine's alone, and its file system may have to be repaired by its journal. Default false. */
  isRootWritable?: boolean
  /**
   * Layers over `files.overlay`, which then is only read, and may be shared with others: qcow2 files of the same size, the lowest first.
   * Only the last is written. Default: none.
   */
  layers?: readonly string[]
  /** The writable disk is not the machine's own layer but what it is to look at; its own is in memory. Default false. */
  overlayAsData?: boolean
  /** Host name inside the guest. */
  hostname: string
  vsock: VsockMode
  /** What the serial link runs over. Default `port`. */
  serialLine?: SerialLine
  /** Our number for the link; unique among the running VMs of this storage folder. */
  cid: number
  /** Guest port of the agent. */
  port: number
  /** The VMM runs as this user when we are root. */
  uid: number
  limits: MachineLimits
  /** Whether states of the kind `diff` can be saved later; it costs the guest speed. Default false. */
  trackDirtyPages?: boolean
  /** Path of a network namespace that the VMM is to be in. */
  networkNamespace?: string
}

/** What a started machine is, as it must be known to find it again. Kept in the sandbox's record. */
export interface MachineFacts {
  vmm: string
  version: string
  accelerator: 'kvm' | 'tcg'
  /** Why it is not `kvm`, when it is not. */
  acceleratorReason?: string | undefined
  /** `vmm`: the VMM's own. */
  vsock: { backend: 'kernel' | 'daemon' | 'vmm'; socket: string } | null
  /** Why there is no vsock, where there is none. */
  vsockReason?: string | undefined
  /** The way to the agent when there is no vsock, or it fails. Not on record of machines of earlier versions, which have none. */
  serial?: { line: SerialLine; socket: string } | undefined
  /** Whether the VMM was put into a jail by its jailer; not told of a VMM that has none. */
  jailed?: boolean | undefined
  /** Why it was not, where it might have been. */
  jailReason?: string | undefined
}

/** What a driver can do with machines beyond running them. */
export interface VmmCapabilities {
  /** Kinds of state that can be saved and loaded. */
  states: readonly StateKind[]
  /** Whether vsock can be connected anew after a pause; where it cannot, the serial line goes on. */
  vsockAfterPause: boolean
  /** Whether a loaded machine can have other TAPs, another socket for vsock, and the host's time. */
  networkOverrides: boolean
  vsockOverride: boolean
  clockRealtime: boolean
  /** Whether a machine's writable disk can be layers over one that is shared. */
  diskLayers: boolean
}

/** `diff`: of the memory only what has changed since the last state was saved. */
export type StateKind = 'full' | 'diff'

/** The state of a machine in files; absolute paths. Disks are not in it. */
export interface MachineState {
  /** Of devices and processors. */
  devices: string
  /** Sparse. Of a `full` one the machine's whole memory; while a machine that was loaded from it runs, it must stay as it is. */
  memory: string
}

export interface LoadOptions {
  /** Default true. */
  resume?: boolean
  /** TAPs in place of those that it was saved with, by interface. */
  networkOverrides?: Record<string, string>
  /** The guest's clock is set to the host's time. Default: where the VMM can. */
  clockRealtime?: boolean
  /** Whether states of the kind `diff` can be saved later. Default false. */
  trackDirtyPages?: boolean
  /** Limits that the machine had when it was saved, where they are known: it need not be told of those that are the same. */
  savedLimits?: LiveLimits
  /** Ends the waiting for the VMM, and the machine with it. */
  signal?: AbortSignal | undefined
}

/** A machine that runs. Several processes may hold one; none of them owns it: the shim does. */
export interface Machine {
  /** The word to the guest's agent that ends the VMM. */
  readonly powerOffMode: 'poweroff' | 'reboot'
  pause(): Promise<void>
  resume(): Promise<void>
  /** Presses the power button. */
  powerDown(): Promise<void>
  /**
   * Takes effect at once, in place of all earlier limits of the kind.
   *
   * @throws `host-unsupported` for `cpus` on a machine that has no control group; `vmm-control`.
   */
  setLimits(limits: LiveLimits): Promise<void>
  /**
   * Asks the guest to do with so much memory, at most what it was started with. It may keep what it needs, and takes all of it back
   * before it would have to kill.
   *
   * @returns What it has now, in MiB, at the latest after a few seconds.
   * @throws `vmm-control`.
   */
  setMemory(memoryMib: number): Promise<number>
  /** The VMM's own counters, as it names them; undefined from one that keeps none. @throws `vmm-control`. */
  metrics(): Promise<Record<string, unknown> | undefined>
  /**
   * Takes the vsock device out of the running machine where its state could not be saved with it, before the pause; all that went over it
   * goes on over the serial line. Elsewhere it does nothing.
   *
   * @returns Whether there was one to take out, for {@link attachVsock} after the pause.
   * @throws `wrong-state` when the machine stands still; `guest-silent` when the guest keeps it; `vmm-control`.
   */
  detachVsock(): Promise<boolean>
  /** Gives the running machine its vsock device, where it has none and there is a daemon for it. @throws as {@link detachVsock}. */
  attachVsock(): Promise<void>
  /**
   * Writes the state of a paused machine into `folder`, which nobody else may enter: it holds the guest's memory. It stays paused. Its disks
   * are the caller's to copy meanwhile.
   *
   * @throws `host-unsupported` where the VMM cannot; `wrong-state` when the machine runs; `vmm-control`; system errors such as `ENOSPC`;
   *   `signal.reason`. The folder is as it was then.
   */
  saveState(folder: string, kind: StateKind, signal?: AbortSignal): Promise<MachineState>
  signal(name: 'SIGTERM' | 'SIGKILL'): Promise<void>
  /** Resolves when the VMM has ended and nothing of it is left but its log and disk. */
  exited(): Promise<VmmExit>
  /** @returns undefined while the VMM still runs after `timeoutMs`. */
  exitedWithin(timeoutMs: number): Promise<VmmExit | undefined>
  /** Lets go of the machine, which runs on. */
  close(): void
}

export interface Vmm {
  /**
   * @throws `host-unsupported` (also for a limit that this host cannot keep), `host-missing`, `vsock-unavailable`, `vmm-failed`; `boot-failed` when the VMM ends at once; `cid-in-use` when a VM that is not ours has
   *   `spec.cid`. Nothing is left behind, and the directory is good for another start.
   */
  start(spec: MachineSpec): Promise<{ machine: Machine; facts: MachineFacts }>
  /**
   * Starts a machine by loading a state; what the machine is comes from there, and its disks, which must be as they were, from `spec`.
   *
   * @throws as `start`; `host-unsupported` for what `capabilities` denies; `vmm-control` with what the VMM says of the state.
   */
  load(
    spec: MachineSpec,
    state: MachineState,
    options?: LoadOptions,
  ): Promise<{ machine: Machine; facts: MachineFacts }>
  /**
   * Makes a whole state in `folder`, of a whole one and of what has changed since, step by step, the oldest first. All stay as they are.
   *
   * @throws `host-unsupported` where the VMM has no `diff`; `command-failed` when they do not belong together; `bad-request` when a
   *   state is there already; `signal.reason`.
   */
  mergeState(
    base: MachineState,
    diffs: readonly [MachineState, ...MachineState[]],
    folder: string,
    signal?: AbortSignal,
  ): Promise<MachineState>
  /**
   * Makes an empty layer for a disk of `sizeBytes`.
   *
   * @throws `host-unsupported` where there are no layers; `bad-request` for the size, or when there is such a file.
   */
  makeLayer(file: string, sizeBytes: number): Promise<void>
  /**
   * Looks whether a layer, which a VMM has written, is one to be given to another; `start` and `load` do so themselves.
   *
   * @throws `host-unsupported`; `artifact-damaged` with what is wrong with it.
   */
  checkLayer(file: string, sizeBytes: number): Promise<void>
  capabilities(): Promise<VmmCapabilities>
  /**
   * What must be equal for a state of a machine to be loaded into one with `spec`: facts of this host, its VMM, and the machine's devices. Names,
   * numbers, files and limits are not among them.
   *
   * @throws `host-unsupported`, `host-missing`.
   */
  fingerprint(spec: MachineSpec): Promise<Record<string, string>>
  /** Path of what is executed for a machine. @throws as {@link fingerprint}. */
  program(): Promise<string>
  /** Takes hold of a machine that runs already. @throws `vmm-failed`. */
  attach(directory: string): Promise<Machine>
  /** The ways to the agent of such a machine, the preferred one first. */
  links(directory: string, facts: MachineFacts, port: number): readonly Link[]
  /** Removes what a start has made of a machine that never ran: its process died before there was a shim to do so. */
  clear(directory: string): Promise<void>
}
