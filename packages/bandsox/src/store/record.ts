/** What is kept of a sandbox: enough for any process to find it, use it and end it. Rows of the table `sandboxes`, checked. */
import { BandSoxError, type Limits, type Metadata, messageOf, type SandboxState } from '@bandsox/sdk'
import { z } from 'zod'
import type { SqlRow, SqlValue } from './driver.js'

const holderSchema = z.object({
  pid: z.number().int(),
  startTime: z.number(),
  bootId: z.string(),
  pidNamespace: z.number(),
})

const imageSchema = z.object({
  reference: z.string(),
  digest: z.string(),
  config: z.object({
    env: z.array(z.string()),
    user: z.string(),
    workingDir: z.string(),
    entrypoint: z.array(z.string()),
    cmd: z.array(z.string()),
    /** Empty: SIGTERM. */
    stopSignal: z.string().default(''),
  }),
})

const machineSchema = z.object({
  /** Of the last start. */
  startedAt: z.string().optional(),
  vmm: z.string(),
  version: z.string(),
  accelerator: z.enum(['kvm', 'tcg']),
  acceleratorReason: z.string().optional(),
  vsock: z.object({ backend: z.enum(['kernel', 'daemon']), socket: z.string() }).nullable(),
})

const limitsSchema: z.ZodType<Limits> = z.object({
  cpus: z.number().nullable(),
  diskBytesPerSecond: z.number().nullable(),
  diskOperationsPerSecond: z.number().nullable(),
})

/** A column of JSON text. */
const json = <T>(schema: z.ZodType<T>) => z.string().transform((text) => schema.parse(JSON.parse(text)))
const metadataSchema: z.ZodType<Metadata> = z.record(z.string(), z.json())

const rowSchema = z.object({
  id: z.string(),
  name: z.string().nullable(),
  imported_from: z.string().nullable(),
  image: json(imageSchema),
  vcpu: z.number(),
  memory_mib: z.number(),
  disk_mib: z.number(),
  env: json(z.record(z.string(), z.string())),
  limits: json(limitsSchema),
  labels: json(z.record(z.string(), z.string())),
  metadata: json(metadataSchema),
  vsock: z.enum(['auto', 'on', 'off']),
  machine: json(machineSchema).nullable(),
  timings: json(z.record(z.string(), z.number())),
  created_at: z.string(),
  state: z.enum(['creating', 'running', 'paused', 'stopping', 'stopped', 'hibernated', 'failed']),
  since: z.string(),
  reason: z.string().nullable(),
  cid: z.number().nullable(),
  port: z.number().nullable(),
  operation: z.string().nullable(),
  operation_since: z.string().nullable(),
  operation_token: z.string().nullable(),
  holder: json(holderSchema).nullable(),
})

export type OperationHolder = z.infer<typeof holderSchema>

/** What a process does to a sandbox; `token` tells it from another one of the same process. */
export interface RecordedOperation {
  name: string
  since: string
  token: string
  holder: OperationHolder
}

export type MachineRecord = z.infer<typeof machineSchema>
export type ImageOfSandbox = z.infer<typeof imageSchema>

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
  image: ImageOfSandbox
  /** Its id in the earlier project's storage. */
  importedFrom: string | undefined
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

/** @throws `storage-unusable` for what no code of ours has written. */
export function recordOf(row: SqlRow): SandboxRecord {
  const checked = checkedRow(row)
  return {
    id: checked.id,
    name: checked.name ?? undefined,
    importedFrom: checked.imported_from ?? undefined,
    image: checked.image,
    vcpu: checked.vcpu,
    memoryMib: checked.memory_mib,
    diskMib: checked.disk_mib,
    env: checked.env,
    limits: checked.limits,
    labels: checked.labels,
    metadata: checked.metadata,
    vsock: checked.vsock,
    machine: checked.machine ?? undefined,
    timings: checked.timings,
    createdAt: checked.created_at,
    state: stateOf(checked),
    cid: checked.cid,
    port: checked.port,
    operation: operationOf(checked),
  }
}

function checkedRow(row: SqlRow): z.infer<typeof rowSchema> {
  try {
    return rowSchema.parse(row)
  } catch (error) {
    const what = error instanceof z.ZodError ? z.prettifyError(error) : messageOf(error)
    throw new BandSoxError('storage-unusable', `the record of sandbox ${String(row['id'])} is damaged: ${what}`, {
      cause: error,
      hint: 'put a backup of bandsox.db in its place',
    })
  }
}

function stateOf({ state: kind, since, reason }: z.infer<typeof rowSchema>): SandboxState {
  if (kind === 'failed') return { kind, since, reason: reason ?? '' }
  if (kind === 'paused' && reason !== null) return { kind, since, reason }
  return { kind, since }
}

function operationOf(row: z.infer<typeof rowSchema>): RecordedOperation | undefined {
  const { operation: name, operation_since: since, operation_token: token, holder } = row
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
