/** What is kept of a sandbox: enough for any process to find it, use it and end it. Rows of the table `sandboxes`, checked. */
import { BandSoxError, type Limits, type Metadata, messageOf, type SandboxState } from '@bandsox/sdk'
import {
  anything,
  boolean,
  type Check,
  type Checked,
  json,
  listOf,
  mapOf,
  nullable,
  number,
  object,
  oneOf,
  optional,
  remembered,
  text,
} from './check.js'
import type { SqlRow, SqlValue } from './driver.js'

export const holderCheck = object({ pid: number, startTime: number, bootId: text, pidNamespace: number })

const image = object({
  reference: text,
  digest: text,
  config: object({
    env: listOf(text),
    user: text,
    workingDir: text,
    entrypoint: listOf(text),
    cmd: listOf(text),
    /** Empty: SIGTERM. */
    stopSignal: text,
  }),
})

const machine = object({
  /** Of the last start. */
  startedAt: optional(text),
  vmm: text,
  version: text,
  accelerator: oneOf('kvm', 'tcg'),
  acceleratorReason: optional(text),
  vsock: nullable(object({ backend: oneOf('kernel', 'daemon', 'vmm'), socket: text })),
  vsockReason: optional(text),
  serial: optional(object({ line: oneOf('port', 'uart'), socket: text })),
  jailed: optional(boolean),
  jailReason: optional(text),
  /** Its guest's programs stand still, since before it was paused. */
  isFrozen: optional(boolean),
  /** Its VMM knows which of its memory has changed since a state was saved. */
  tracksChanges: optional(boolean),
  /** Id of the last snapshot, since which its changes are followed. */
  lastState: optional(text),
  /** It goes on from a state, and has not been told yet who it is: guest port that its agent listens on until then. */
  pendingPort: optional(number),
  /** What a machine must have in common with it to go on from its state: `Vmm.fingerprint`. */
  fingerprint: optional(mapOf(text)),
})

const limits: Check<Limits> = object({
  cpus: nullable(number),
  diskBytesPerSecond: nullable(number),
  diskOperationsPerSecond: nullable(number),
})

/** All that JSON can hold is allowed in it. */
const metadata = mapOf(anything) as Check<Metadata>

const texts = mapOf(text)
const checks = {
  text,
  number,
  textOrNull: nullable(text),
  numberOrNull: nullable(number),
  image: remembered(json(image)),
  texts: json(texts),
  limits: json(limits),
  metadata: json(metadata),
  machine: nullable(json(machine)),
  timings: json(mapOf(number)),
  holder: nullable(json(holderCheck)),
  layers: json(listOf(text)),
  vsock: oneOf('auto', 'on', 'off'),
  state: oneOf('creating', 'running', 'paused', 'stopping', 'stopped', 'hibernated', 'failed'),
}

export type OperationHolder = Checked<typeof holderCheck>

/** What a process does to a sandbox; `token` tells it from another one of the same process. */
export interface RecordedOperation {
  name: string
  since: string
  token: string
  holder: OperationHolder
}

export type MachineRecord = Checked<typeof machine>
export type ImageOfSandbox = Checked<typeof image>

/** What is decided when a sandbox is made. */
export interface SandboxShape {
  name: string | undefined
  vcpu: number
  memoryMib: number
  diskMib: number
  env: Record<string, string>
  limits: Limits
  labels: Record<string, string>
  metadata: Metadata
  vsock: 'auto' | 'on' | 'off'
}

export interface SandboxRecord extends SandboxShape {
  id: string
  readonly image: Readonly<ImageOfSandbox>
  /** Its id in the earlier project's storage. */
  importedFrom: string | undefined
  /** Its root disk is its own, and written to, as the earlier project's are. */
  hasOwnRoot: boolean
  /** Files of its disk above the first one, lowest first; the last is the one that is written to. */
  layers: readonly string[]
  /** The snapshot that it was restored from. */
  restoredFrom: string | undefined
  /** The pool in which it waits for somebody to take it. */
  pool: string | undefined
  state: SandboxState
  /** Held from start to stop. */
  cid: number | null
  port: number | null
  createdAt: string
  /** What the driver told of the machine; there once it was started. */
  machine: MachineRecord | undefined
  timings: Record<string, number>
  operation: RecordedOperation | undefined
}

/** What a sandbox has that is neither imported nor restored, and has not been started yet. */
export const unstarted = {
  importedFrom: undefined,
  hasOwnRoot: false,
  layers: [],
  restoredFrom: undefined,
  pool: undefined,
  cid: null,
  port: null,
  machine: undefined,
  timings: {},
} as const satisfies Partial<SandboxRecord>

/** @throws `storage-unusable` for what no code of ours has written. */
export function recordOf(row: SqlRow): SandboxRecord {
  const column = <T>(name: string, check: Check<T>): T => {
    try {
      return check(row[name])
    } catch (error) {
      throw damaged(row, name, error)
    }
  }
  return {
    id: column('id', checks.text),
    name: column('name', checks.textOrNull) ?? undefined,
    importedFrom: column('imported_from', checks.textOrNull) ?? undefined,
    hasOwnRoot: column('own_root', checks.number) !== 0,
    layers: column('layers', checks.layers),
    restoredFrom: column('restored_from', checks.textOrNull) ?? undefined,
    pool: column('pool', checks.textOrNull) ?? undefined,
    image: column('image', checks.image),
    vcpu: column('vcpu', checks.number),
    memoryMib: column('memory_mib', checks.number),
    diskMib: column('disk_mib', checks.number),
    env: column('env', checks.texts),
    limits: column('limits', checks.limits),
    labels: column('labels', checks.texts),
    metadata: column('metadata', checks.metadata),
    vsock: column('vsock', checks.vsock),
    machine: column('machine', checks.machine) ?? undefined,
    timings: column('timings', checks.timings),
    createdAt: column('created_at', checks.text),
    state: stateOf(column('state', checks.state), column('since', checks.text), column('reason', checks.textOrNull)),
    cid: column('cid', checks.numberOrNull),
    port: column('port', checks.numberOrNull),
    operation: operationOf(
      column('operation', checks.textOrNull),
      column('operation_since', checks.textOrNull),
      column('operation_token', checks.textOrNull),
      column('holder', checks.holder),
    ),
  }
}

const damaged = (row: SqlRow, column: string, cause: unknown): BandSoxError =>
  new BandSoxError(
    'storage-unusable',
    `the record of sandbox ${String(row['id'])} is damaged at ${column}: ${messageOf(cause)}`,
    { cause, hint: 'put a backup of bandsox.db in its place' },
  )

function stateOf(kind: SandboxState['kind'], since: string, reason: string | null): SandboxState {
  if (kind === 'failed') return { kind, since, reason: reason ?? '' }
  if (kind === 'paused' && reason !== null) return { kind, since, reason }
  return { kind, since }
}

function operationOf(
  name: string | null,
  since: string | null,
  token: string | null,
  holder: OperationHolder | null,
): RecordedOperation | undefined {
  if (name === null || since === null || token === null || holder === null) return undefined
  return { name, since, token, holder }
}

/** The columns of a state. */
export const stateColumns = (state: SandboxState) => ({
  state: state.kind,
  since: state.since,
  reason: 'reason' in state ? (state.reason ?? null) : null,
})

export const operationColumns = (operation: RecordedOperation | undefined) => ({
  operation: operation?.name ?? null,
  operation_since: operation?.since ?? null,
  operation_token: operation?.token ?? null,
  holder: operation === undefined ? null : JSON.stringify(operation.holder),
})

/** The columns of all that {@link recordOf} reads. */
export const columnsOf = (record: SandboxRecord): Record<string, SqlValue> => ({
  id: record.id,
  name: record.name ?? null,
  imported_from: record.importedFrom ?? null,
  own_root: record.hasOwnRoot ? 1 : 0,
  layers: JSON.stringify(record.layers),
  restored_from: record.restoredFrom ?? null,
  pool: record.pool ?? null,
  image: JSON.stringify(record.image),
  vcpu: record.vcpu,
  memory_mib: record.memoryMib,
  disk_mib: record.diskMib,
  env: JSON.stringify(record.env),
  limits: JSON.stringify(record.limits),
  labels: JSON.stringify(record.labels),
  metadata: JSON.stringify(record.metadata),
  vsock: record.vsock,
  machine: record.machine === undefined ? null : JSON.stringify(record.machine),
  timings: JSON.stringify(record.timings),
  created_at: record.createdAt,
  ...stateColumns(record.state),
  cid: record.cid,
  port: record.port,
  ...operationColumns(record.operation),
})
