/** Saved states of machines: what a program asks of them, and what it is told. */
import type { Limits, Metadata, VsockMode } from './shape.js'

export interface SnapshotOptions {
  /** As a sandbox's; need not be unique. */
  name?: string
  metadata?: Metadata
  /**
   * Of its memory only what has changed since its last snapshot, or since the one that it was restored from; the new snapshot needs that
   * one from then on. Default false.
   *
   * @throws `host-unsupported` where the VMM cannot tell; `wrong-state` for a sandbox whose changes are not followed (`tracksChanges`).
   */
  diff?: boolean
  /** How long the guest's own hooks may take, together. Default 10 000. */
  hooksTimeoutMs?: number
  signal?: AbortSignal
}

export interface SnapshotInfo {
  /** Never changes. */
  id: string
  name: string | undefined
  /** `template`: made by itself, for new sandboxes to start from. */
  purpose: 'snapshot' | 'template'
  kind: 'full' | 'diff'
  /** Id of the snapshot that it builds on. */
  base: string | null
  /** Id of the sandbox that it was taken of. */
  sandbox: string
  /** The name that this one had. */
  sandboxName: string | undefined
  image: string
  vcpu: number
  memoryMib: number
  diskMib: number
  metadata: Metadata
  /** Of the VMM that made it: only its like can restore it. */
  vmm: string
  /** How long the sandbox stood still for it. */
  pauseMs: number
  /** What its files take of the host's disk; those that others have too count as well. */
  bytes: { memory: number; devices: number; disk: number }
  /** What each restore copies of them; the rest is shared. */
  restoreCopyBytes: number
  /** Whether the guest's programs stood still before the guest did: only then none of them runs in a restored one before that is itself. */
  isFrozen: boolean
  createdAt: string
  /** When something was last started from it. */
  usedAt: string | null
  /** Ids of running sandboxes that map its memory. */
  usedBy: readonly string[]
}

/** What a restored sandbox has that the snapshot has not, or otherwise. Everything else is as it was. */
export interface RestoreOptions {
  name?: string
  /** Refuses when another sandbox has this name. Default false. */
  unique?: boolean
  /** Merged with the snapshot's, by key. */
  labels?: Record<string, string>
  metadata?: Metadata
  /** Merged with the snapshot's, by name. Programs that run already keep what they have. */
  env?: Record<string, string>
  limits?: Partial<Limits>
  /** How long the guest's own hooks may take, together. Default 10 000. */
  hooksTimeoutMs?: number
  /** Whether snapshots can be taken of it that hold changes only; see `SnapshotOptions.diff`. Default false. */
  tracksChanges?: boolean
  /** Bounds the wait for the agent's first answer. Default 60 000. */
  bootTimeoutMs?: number
  signal?: AbortSignal
}

export interface ForkOptions extends Omit<RestoreOptions, 'name' | 'unique'> {
  /** How many children, 1–100. Default 1. */
  count?: number
  /** Of the children: with more than one, `-1`, `-2` … is put behind. */
  name?: string
}

/** What was looked at, and found to be as it was made. */
export interface SnapshotCheck {
  id: string
  files: readonly { name: string; sizeBytes: number }[]
}

/** Sandboxes that wait, restored and standing still, to be taken by `create`. */
export interface PoolOptions {
  /** How many wait, 1–1000. */
  size: number
  vcpu?: number
  memoryMib?: number
  diskMib?: number
  vsock?: VsockMode
  /** One that has waited so long is replaced. Default one hour. */
  maxAgeMs?: number
  /** Fills it before it returns; else another process does meanwhile. Default false. */
  waits?: boolean
  signal?: AbortSignal
}

export interface PoolInfo {
  id: string
  image: string
  size: number
  vcpu: number
  memoryMib: number
  diskMib: number
  vsock: VsockMode
  maxAgeMs: number
  createdAt: string
  /** How many can be taken, and are being made. */
  ready: number
  making: number
  /** Why it could not be filled, the last time. */
  failure: string | null
}

export interface Pools {
  /** Makes one for sandboxes of an image and a shape, or changes it. `create` takes from it what was asked for in the same words. */
  set(image: string, options: PoolOptions): Promise<PoolInfo>
  list(): Promise<PoolInfo[]>
  /** Of an image, in whatever shape, or by its id. What waits in it goes. @throws `not-found`. */
  remove(image: string): Promise<void>
}
