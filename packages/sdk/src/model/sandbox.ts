/** The interfaces that a program uses: implemented on this host, later over HTTP as well, with the same shapes. */
import type { BandSoxError } from './errors.js'
import type { ImageEvent, Images, PullPolicy, RegistryCredentials } from './image.js'
import type { Limits, Metadata, VsockMode } from './shape.js'
import type { ForkOptions, Pools, RestoreOptions, SnapshotCheck, SnapshotInfo, SnapshotOptions } from './snapshot.js'
import type { SandboxState, StateName } from './state.js'

/** Which transport carried an operation. */
export type LinkKind = 'vsock' | 'serial'

export interface CreateOptions {
  /** At most 64 characters of `[A-Za-z0-9._-]`; need not be unique. */
  name?: string
  /** Refuses when another sandbox has this name. Default false. */
  unique?: boolean
  /** For filters: keys of 1–63 characters of `[A-Za-z0-9._/-]`, values of at most 255 without control characters. */
  labels?: Record<string, string>
  metadata?: Metadata
  limits?: Partial<Limits>
  /** Virtual CPUs, 1–32. Default 1. */
  vcpu?: number
  /** Guest memory in MiB, 64–1 048 576. Default 256. */
  memoryMib?: number
  /** Size of the writable disk in MiB, 64–1 048 576 (sparse). Default 4096. */
  diskMib?: number
  /** Variables for every command in this sandbox, on top of the image's. */
  env?: Record<string, string>
  /** Default `auto`. */
  vsock?: VsockMode
  /** Boots it, also where a template would be at hand to start from, and makes none. Default false. */
  cold?: boolean
  /** Whether snapshots can be taken of it that hold changes only (Firecracker); it costs the guest speed, and boots it. Default false. */
  tracksChanges?: boolean
  /** Bounds the wait for the agent's first answer. Default 60 000. */
  bootTimeoutMs?: number
  /** Whether the image is fetched. Default `missing`. */
  pull?: PullPolicy
  /** Of the image: `os/architecture[/variant]`. Default: the host's. */
  platform?: string
  /** For the image's registry. Default: what `bandsox login`, `docker login` and `podman login` have stored. */
  credentials?: RegistryCredentials
  /** Told of the image's fetching. */
  onImageEvent?: (event: ImageEvent) => void
  signal?: AbortSignal
}

/** A terminal's size in characters, 1–10 000 each. */
export interface TerminalSize {
  cols: number
  rows: number
}

export interface ExecOptions {
  /** Added to the image's and the sandbox's variables. */
  env?: Record<string, string>
  /** Absolute path in the guest. Default: the image's working folder. */
  cwd?: string
  /** `name`, `uid`, `name:group` or `uid:gid`. Default: the image's user. */
  user?: string
  /** Standard input; absent = /dev/null. Read at the pace of the command. */
  input?: string | AsyncIterable<Uint8Array>
  /**
   * Gives the command a terminal of this size in place of pipes. All that it shows comes as `stdout`, what is in `input` is typed,
   * and the end of `input` is typed, too (Ctrl-D). `TERM` is `xterm-256color` unless `env` says otherwise.
   * @throws `agent-incompatible` when the sandbox was made by a version without terminals.
   */
  pty?: TerminalSize
  /** After this the guest kills the command's process group, at a terminal its session; the result says `timedOut`. */
  timeoutMs?: number
  /**
   * Leaves all other links out. Default: the healthiest one, and the next when it breaks.
   * @throws `vsock-unavailable` for a sandbox without vsock that is asked for it.
   */
  link?: LinkKind
  /** Abort kills the command's process group, at a terminal its session. */
  signal?: AbortSignal
}

export interface OutputChunk {
  stream: 'stdout' | 'stderr'
  data: Uint8Array
}

/** How a command ended: exactly one of `exitCode` and `signal` is not null. */
export interface ExecResult {
  exitCode: number | null
  /** Such as `SIGKILL`. */
  signal: string | null
  /** True when `timeoutMs` ended it. */
  timedOut: boolean
  /** The one over which it ended: a command whose connection breaks goes on over another. */
  link: LinkKind
}

export interface CollectedOutput extends ExecResult {
  stdout: string
  stderr: string
}

/** A command in the guest. A command that exits with 1 is a result, not an error. */
export interface Job {
  /** Standard output and error in the order of arrival, at the reader's pace. One reader; leaving early kills the command. */
  readonly output: AsyncIterable<OutputChunk>
  /** Waits for the end; output that nobody reads is thrown away. */
  wait(): Promise<ExecResult>
  /**
   * Waits for the end and keeps the output as text (UTF-8; what is not UTF-8 becomes U+FFFD).
   * @throws `output-too-large` above `maxOutputBytes` (default 16 MiB); the command is then killed.
   */
  collect(options?: { maxOutputBytes?: number }): Promise<CollectedOutput>
  /** Sends a signal to the command's process group. */
  kill(signal?: string): void
  /**
   * Changes the size of the command's terminal. Once the command has ended it does nothing; a command without `pty` fails by it.
   * @throws `bad-request` for a size that no terminal has.
   */
  resize(cols: number, rows: number): void
}

/** A command in the guest, as its agent knows it. */
export interface JobInfo {
  id: string
  /** In the guest. */
  pid: number
  /** What it is, shortened. */
  command: string
  /** Since the guest's boot. */
  startedMs: number
  /** Offsets of its output: what is kept of it goes from the first to the second, which is how much there was in all. */
  keptFrom: number
  outputBytes: number
  hasEnded: boolean
  hasTerminal: boolean
  /** Somebody reads its output. */
  isAttached: boolean
}

export type ChecksumName = 'xxh64' | 'sha256' | 'md5'

export interface TransferOptions {
  /** Default: the quickest that both ends have; `sha256` for integrity against malice. */
  checksum?: ChecksumName
  /** Called at most every 100 ms and at the end. */
  onProgress?: (progress: { bytes: number; totalBytes: number | undefined }) => void
  /**
   * Leaves all other links out. Default: the healthiest one, and the next when it breaks.
   * @throws `vsock-unavailable` for a sandbox without vsock that is asked for it.
   */
  link?: LinkKind
  signal?: AbortSignal
}

export interface WriteOptions extends TransferOptions {
  /** Permission bits of a new file. Default: the local file's for `upload`, 0o644 for `write`. */
  mode?: number
  /** Makes missing folders (0755). Default true. */
  makeParents?: boolean
  /** Owner of a new file. Default root. */
  user?: string
}

export interface TransferResult {
  /** Guest path for an upload, host path for a download. */
  path: string
  sizeBytes: number
  checksum: { algorithm: ChecksumName; value: string }
  link: LinkKind
  durationMs: number
}

export type FileType = 'file' | 'directory' | 'symlink' | 'character-device' | 'block-device' | 'fifo' | 'socket'

export interface FileEntry {
  /** Last part of the path; bytes that are not UTF-8 appear as U+FFFD. */
  name: string
  /** The exact bytes in base64 where `name` could not hold them. */
  rawName?: string
  type: FileType
  sizeBytes: number
  /** Permission bits, 0–0o7777. */
  mode: number
  uid: number
  gid: number
  modifiedAt: string
  /** Of a symbolic link. */
  target?: string
}

/** Files of a running sandbox. Guest paths are absolute. */
export interface Files {
  /** Writes `content` to a guest file, replacing it atomically. */
  write(
    path: string,
    content: string | Uint8Array | AsyncIterable<Uint8Array>,
    options?: WriteOptions,
  ): Promise<TransferResult>
  /** Reads a whole guest file. @throws `output-too-large` above `maxBytes` (default 64 MiB). */
  read(path: string, options?: { maxBytes?: number; signal?: AbortSignal }): Promise<Buffer>
  /** Copies a host file into the guest: checked, synced, then renamed into place. */
  upload(hostPath: string, guestPath: string, options?: WriteOptions): Promise<TransferResult>
  /** Copies a guest file to the host: checked, synced, then renamed into place. Missing host folders are made. */
  download(guestPath: string, hostPath: string, options?: TransferOptions): Promise<TransferResult>
  stat(path: string, options?: { followLinks?: boolean; signal?: AbortSignal }): Promise<FileEntry>
  /** Entries of a folder as the guest sends them, unsorted. */
  list(path: string, options?: { signal?: AbortSignal }): AsyncIterable<FileEntry>
  /**
   * Copies a file or a folder with all in it into the guest. As with `cp -r`: into `guestPath` when that is a folder, else under that
   * name; of a `hostPath` that ends in `/.` the content. Nothing is seen of it before all has come, and nothing is left of one that failed.
   *
   * @throws `file-not-found`, `file-error`, `no-space`, `checksum-mismatch`, `agent-incompatible`.
   */
  copyIn(hostPath: string, guestPath: string, options?: CopyOptions): Promise<CopyResult>
  /** The same the other way. Set-id bits and owners stay in the guest, and devices: docs/files.md says what is kept. */
  copyOut(guestPath: string, hostPath: string, options?: CopyOptions): Promise<CopyResult>
}

export interface CopyOptions {
  /** Patterns of what is taken, below the copied folder; without one, everything. See docs/files.md, "Patterns". */
  include?: readonly string[]
  /** Patterns of what is left out, whatever `include` says. */
  exclude?: readonly string[]
  /** Called at most every 100 ms and at the end, with the bytes of files so far. */
  onProgress?: (progress: { bytes: number; totalBytes: number | undefined }) => void
  /** Leaves all other links out. Default: the healthiest one, and the next when it breaks. */
  link?: LinkKind
  signal?: AbortSignal
}

export interface CopyResult {
  files: number
  folders: number
  /** Symbolic links, and hard ones after the first. */
  links: number
  /** Of the files' content; holes are none. */
  bytes: number
  link: LinkKind
  durationMs: number
  /** What is not in the copy, or not as it was: the first hundred. */
  skipped: readonly { path: string; reason: string }[]
  /** All of them. */
  skippedCount: number
}

export interface ForwardOptions {
  guestPort: number
  /** A name or an address that the guest resolves. Default: the guest's own 127.0.0.1. */
  guestHost?: string
  /** Default 0: any that is free. */
  hostPort?: number
  /** Where to listen on this host. Default 127.0.0.1. */
  hostAddress?: string
  /** Told of each connection that failed; its client was reset. */
  onFailure?: (error: BandSoxError) => void
  /** Abort closes it, as `close` does. */
  signal?: AbortSignal
}

/** A port of this host whose connections are passed on into the guest, until it is closed. */
export interface PortForward extends AsyncDisposable {
  readonly hostAddress: string
  readonly hostPort: number
  readonly guestPort: number
  /** How many connections are open, were opened in all, and failed. */
  readonly connections: { readonly open: number; readonly opened: number; readonly failed: number }
  /** Listens no more, and resets what is open. Harmless when repeated. */
  close(): Promise<void>
}

/** What a process does to a sandbox just now; others are refused meanwhile. */
export interface OperationInProgress {
  name: string
  since: string
  /** Of the host. */
  pid: number
}

export interface SandboxInfo {
  id: string
  name: string | undefined
  image: string
  state: SandboxState
  operation: OperationInProgress | null
  labels: Record<string, string>
  metadata: Metadata
  limits: Limits
  vcpu: number
  memoryMib: number
  diskMib: number
  vmm: string
  /** How the VM runs its instructions: `kvm` or `tcg` (emulation, slower). */
  accelerator: string
  /** `null` when no vsock device is there. */
  vsock: { cid: number; port: number; backend: string } | null
  vmmPid: number | null
  createdAt: string
  /** Id of the snapshot that it was made of, which may be gone. */
  restoredFrom: string | null
  /** Of the id that the earlier project gave it, when it was imported from there. */
  importedFrom: string | null
  /** The VM's own directory on the host. */
  directory: string
  /** Milliseconds each stage of the start took, in order. */
  timings: Record<string, number>
}

/** One way to the guest, tried just now. */
export interface LinkState {
  /** The Unix socket on the host, which takes `CONNECT <port>`; null when the machine has no such link. */
  socket: string | null
  /** Milliseconds from the connection to the agent's hello; null when it did not answer. */
  handshakeMs: number | null
  /** Why it did not. */
  failure: string | null
  /** Connections, and bytes that have passed since the machine's shim began; null when that does not tell. */
  traffic: { open: number; opened: number; toGuestBytes: number; fromGuestBytes: number } | null
}

/** What the VMM of a running sandbox says of itself. */
export interface SandboxMetrics {
  /** Name and version. */
  vmm: string
  /** By the VMM's own names, in groups; null from one that counts nothing. Most of Firecracker's are since they were last told, at most a minute ago. */
  counters: Record<string, unknown> | null
  /** The last lines of its log, oldest first; null from one that has none. */
  log: readonly string[] | null
}

/** The links of a running sandbox, from the host's device to the guest's. What only the guest can tell is null when it cannot be asked. */
export interface LinkReport {
  /** The one that an operation would take now. */
  current: LinkKind | null
  /** Why that one. */
  reason: string
  vsock: LinkState & {
    /** What was asked for when the sandbox was made. */
    wanted: VsockMode
    /** `kernel` or `daemon`; null: the machine has no device. */
    backend: string | null
    backendState: 'running' | 'dead' | null
    cid: number | null
    port: number | null
    /** Whether the guest's kernel knows vsock at all. */
    guestKernel: boolean | null
    /** The loaded module of the transport; null also when it is built in. */
    guestModule: string | null
    guestDevice: boolean | null
    /** What the device tells the guest. */
    guestCid: number | null
    /** The port that the agent listens on. */
    guestPort: number | null
    /** Why it does not. */
    guestReason: string | null
  }
  serial: LinkState & {
    line: 'port' | 'uart' | null
    /** Of the datalink; null when the shim does not tell. */
    datalink: {
      state: 'up' | 'connecting'
      rttMs: number | null
      windowBytes: number
      payloadBytes: number
      framesSent: number
      framesResent: number
      framesDamaged: number
    } | null
  }
}

export interface Sandbox extends AsyncDisposable {
  readonly id: string
  readonly files: Files
  info(): Promise<SandboxInfo>
  /** Runs a command: a list is run as it is, a string by `/bin/sh -c`. The image's entrypoint is not involved. */
  exec(command: string | readonly string[], options?: ExecOptions): Job
  /** The commands that run in it, or have just ended, whoever began them: also those of the sandbox that it was restored from. */
  jobs(options?: { signal?: AbortSignal }): Promise<JobInfo[]>
  /**
   * Takes a command over that runs already, from the oldest output that the guest has kept of it. Whoever had it is left without. It runs
   * on when its output is not read to the end, or `signal` aborts.
   *
   * @param job Its id, as `jobs` has it. @throws `not-found` where its output or end is awaited, when there is none.
   */
  attach(job: string, options?: Pick<ExecOptions, 'signal' | 'link'>): Job
  /** Runs the image's entrypoint with `command` (default: the image's own) as its arguments. */
  run(command?: readonly string[], options?: ExecOptions): Job
  /**
   * Listens on a port of this host, and passes each of its connections on into the guest, which needs no network for it.
   *
   * @throws `bad-request`; `host-resource` when the port is in use; `permission-denied` for one that this user may not have.
   */
  forward(options: ForwardOptions): Promise<PortForward>
  /** Starts a stopped sandbox: a new machine with the disk that it had. Returns when its agent answers. */
  start(options?: StartOptions): Promise<void>
  /** Stops it, if it runs, and starts it again. */
  restart(options?: StartOptions): Promise<void>
  /** Asks the agent, then ACPI, then SIGTERM, then SIGKILL; each step is bounded. The disk is kept. */
  stop(options?: { signal?: AbortSignal }): Promise<void>
  /** Ends the VM at once. The disk is kept, as after a power cut. */
  kill(): Promise<void>
  pause(): Promise<void>
  /** Also of a hibernated one: its machine is loaded anew. */
  resume(options?: StartOptions): Promise<void>
  /**
   * Saves the state of its machine, with its disk as it is at the same moment. It stands still meanwhile, and goes on.
   *
   * @throws `wrong-state`, `no-space`, `hook-failed`; the sandbox is as it was.
   */
  snapshot(options?: SnapshotOptions): Promise<SnapshotInfo>
  /** Makes children of it, which go on where it is; it stands still for one short moment, whatever their number. @throws as `snapshot`. */
  fork(options?: ForkOptions): Promise<Sandbox[]>
  /** Saves its state, and ends its machine. Whatever is asked of it next wakes it up; so does `resume`. */
  hibernate(options?: { signal?: AbortSignal }): Promise<void>
  /** @param options.unique Refuses when another sandbox has this name. */
  rename(name: string, options?: { unique?: boolean }): Promise<void>
  /**
   * Changes what is given. Labels are merged by key, `null` removes one; metadata is replaced; limits hold from now on;
   * virtual CPUs need a stopped sandbox. So does its memory; one that runs is asked to do with less than it was started with,
   * until it stops.
   *
   * @throws `bad-request`; `wrong-state`; `host-unsupported` for a limit that this host cannot keep.
   */
  update(changes: SandboxChanges): Promise<void>
  /**
   * Waits until it is in one of `states`.
   *
   * @returns The state.
   * @throws `timeout`; `wrong-state` when it has failed and so never gets there by itself; `not-found` when it is removed.
   */
  waitFor(states: readonly StateName[], options?: { timeoutMs?: number; signal?: AbortSignal }): Promise<SandboxState>
  /** What its VMM counts, and has logged. @throws `wrong-state` when it does not run; `vmm-control`. */
  metrics(): Promise<SandboxMetrics>
  /** Tries each link, and tells what there is of it on both sides. @throws `wrong-state` when it does not run. */
  links(options?: { signal?: AbortSignal }): Promise<LinkReport>
  /** Removes a sandbox and its disk. @param options.force Kills a running one first. */
  delete(options?: { force?: boolean }): Promise<void>
  /** The console of the guest, oldest first; bounded by the log's rotation. */
  logs(options?: { follow?: boolean; signal?: AbortSignal }): AsyncIterable<Uint8Array>
}

export interface StartOptions {
  /** Bounds the wait for the agent's first answer. Default 60 000. */
  bootTimeoutMs?: number
  signal?: AbortSignal
}

export interface SandboxChanges {
  labels?: Record<string, string | null>
  metadata?: Metadata
  limits?: Partial<Limits>
  vcpu?: number
  memoryMib?: number
}

/** What `list` leaves in. Every field given must match. */
export interface SandboxFilter {
  states?: readonly StateName[]
  name?: string
  /** The label is there, with this value; `null`: with any. */
  labels?: Record<string, string | null>
  /** Values at the top of the metadata that are equal to these. */
  metadata?: Metadata
  /** The newest of those that match. */
  limit?: number
}

/** Something that happened to a sandbox. */
export interface SandboxEvent {
  /** Grows. */
  sequence: number
  at: string
  sandbox: string
  name: string | undefined
  /** `created`, `deleted`, `renamed`, or the state that it is in since. */
  kind: string
  reason?: string
}

export interface Snapshots {
  /** Oldest first. @param options.templates Also those that were made by themselves. Default false. */
  list(options?: { templates?: boolean }): Promise<SnapshotInfo[]>
  /** By id, unique id prefix, or name. @throws `not-found`, `ambiguous-name`. */
  get(idOrName: string): Promise<SnapshotInfo>
  /**
   * Makes a sandbox of it, which goes on where that one was; any number, also beside the running original.
   *
   * @throws `snapshot-incompatible` when this host cannot; `snapshot-damaged`; nothing is left behind.
   */
  restore(idOrName: string, options?: RestoreOptions): Promise<Sandbox>
  rename(idOrName: string, name: string): Promise<void>
  /** @throws `snapshot-in-use` while a running sandbox maps it, or another snapshot builds on it; `force` is for the former. */
  delete(idOrName: string, options?: { force?: boolean }): Promise<unknown>
  /** Reads all of it, and compares with what was written down when it was made. @throws `snapshot-damaged` naming the file. */
  verify(idOrName: string, options?: { signal?: AbortSignal }): Promise<SnapshotCheck>
  /**
   * Makes one that holds changes only independent of what it builds on, which can be deleted then. Its id stays; one that is whole stays as it is.
   *
   * @throws `snapshot-damaged`, `no-space`.
   */
  merge(idOrName: string, options?: { signal?: AbortSignal }): Promise<SnapshotInfo>
  /** Writes it into one file, to be imported elsewhere. @throws `bad-request` for one that holds changes only: merge it first. */
  export(idOrName: string, file: string, options?: { signal?: AbortSignal }): Promise<{ bytes: number }>
  /** @throws `snapshot-damaged`, `bad-request` for what is no such file. It gets an id of its own. */
  import(file: string, options?: { name?: string; signal?: AbortSignal }): Promise<SnapshotInfo>
}

/** One host's sandboxes. */
export interface BandSox extends AsyncDisposable {
  readonly images: Images
  readonly snapshots: Snapshots
  readonly pools: Pools
  /** Makes and starts a sandbox; returns when its agent answers. On failure nothing is left behind. */
  create(image: string, options?: CreateOptions): Promise<Sandbox>
  /** By id, unique id prefix, or name. @throws `not-found`, `ambiguous-name`. */
  get(idOrName: string): Promise<Sandbox>
  /** Oldest first. */
  list(filter?: SandboxFilter): Promise<SandboxInfo[]>
  /**
   * What has happened, oldest first; the last 10 000 events are kept.
   *
   * @param options.follow Goes on with what comes, until `signal` or the loop ends.
   * @param options.after Only events with a higher `sequence`.
   */
  events(options?: { follow?: boolean; after?: number; signal?: AbortSignal }): AsyncIterable<SandboxEvent>
}
