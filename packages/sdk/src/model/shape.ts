/** What is decided of a sandbox when it is made, and noted on it. */

export type VsockMode = 'auto' | 'on' | 'off'

/** What a sandbox may take of its host beyond CPUs and memory. `null`: no bound. */
export interface Limits {
  /** Host CPUs' worth of time, such as 0.5; needs cgroup v2. Default null: as many as it has virtual CPUs. */
  cpus: number | null
  /** Bytes per second of its disks, reads and writes together. Default 209 715 200. */
  diskBytesPerSecond: number | null
  /** Reads and writes per second of its disks. Default 5000. */
  diskOperationsPerSecond: number | null
}

/** Values that JSON can hold. */
export type JsonValue = string | number | boolean | null | readonly JsonValue[] | { readonly [key: string]: JsonValue }

/** A program's own notes on a sandbox, at most 64 KiB as JSON. */
export type Metadata = { readonly [key: string]: JsonValue }
