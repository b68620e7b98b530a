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
}

/** What a started machine is, as it must be known to find it again. Kept in the sandbox's record. */
export interface MachineFacts {
  vmm: string
  version: string
  accelerator: 'kvm' | 'tcg'
  /** Why it is not `kvm`, when it is not. */
  acceleratorReason?: string | undefined
  vsock: { backend: 'kernel' | 'daemon'; socket: string } | null
  /** Why there is no vsock, where there is none. */
  vsockReason?: string | undefined
  /** The way to the agent when there is no vsock, or it fails. Not on record of machines of earlier versions, which have none. */
  serial?: { line: SerialLine; socket: string } | undefined
}

/** A machine that runs. Several processes may hold one; none of them owns it: the shim does. */
export interface Machine {
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
  signal(name: 'SIGTERM' | 'SIGKILL'): Promise<void>
  /** Resolves when the VMM has ended and nothing of it is left but its log and disk. */
  exited(): Promise<VmmExit>
  /** @returns undefined while the VMM still runs after `timeoutMs`. */
  exitedWithin(timeoutMs: number): Promise<VmmExit | undefined>
  /** Lets go of the machine, which runs on. */
  close(): void
}

export interface Vmm {
  readonly name: string
  /**
   * @throws `host-unsupported` (also for a limit that this host cannot keep), `host-missing`, `vsock-unavailable`, `vmm-failed`; `cid-in-use` when a VM that is not ours has
   *   `spec.cid`. Nothing is left behind, and the directory is good for another start.
   */
  start(spec: MachineSpec): Promise<{ machine: Machine; facts: MachineFacts }>
  /** Takes hold of a machine that runs already. @throws `vmm-failed`. */
  attach(directory: string): Promise<Machine>
  /** The ways to the agent of such a machine, the preferred one first. */
  links(directory: string, facts: MachineFacts, port: number): readonly Link[]
}
