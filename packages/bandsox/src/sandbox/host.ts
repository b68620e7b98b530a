/** What every part of a sandbox's life needs of this host: the storage, the driver, its limits, and a log. */
import type { Limits } from '@bandsox/sdk'
import type { SandboxStore } from '../store/sandbox-store.js'
import type { VmmChoice } from '../vmm/host-vmm.js'
import type { Vmm } from '../vmm/vmm.js'
import type { Configuration } from './configuration.js'
import type { LocalImages } from './local-images.js'

export interface Host {
  readonly store: SandboxStore
  readonly images: LocalImages
  readonly vmm: Vmm
  /** Which VMM new machines get, and why. */
  readonly vmmChoice: () => Promise<VmmChoice>
  /** The shim's binary. */
  readonly shimPath: string
  readonly defaultLimits: Limits
  readonly configuration: () => Promise<Configuration>
  /** Details: allocations, releases, failed attempts. */
  readonly debug: (message: string) => void
  /** What was done, in a line each. */
  readonly info: (message: string) => void
  /** What is wrong and was left as it is. */
  readonly warn: (message: string) => void
}

/** Names inside a VM's own directory. */
export const machineFiles = {
  kernel: 'kernel',
  initramfs: 'initramfs',
  root: 'root.squashfs',
  overlay: 'overlay.ext4',
} as const

/** In the place of `root`, of a sandbox that was imported: the earlier project's disk, a whole root file system of its own. */
export const IMPORTED_ROOT = 'root.ext4'
