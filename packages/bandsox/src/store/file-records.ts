/** Reads the records of the versions that kept a file for each sandbox (up to 0.1.0), to be entered in a new database. */
import { readdir } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { z } from 'zod'
import { readJsonFile } from '../process/json-file.js'
import { type SandboxRecord, unstarted } from './record.js'

const RECORD_FILE = 'sandbox.json'

const fileSchema = z.object({
  version: z.literal(1),
  id: z.string().regex(/^sbx_[a-z2-7]{10}$/),
  name: z.string().optional(),
  image: z.object({
    reference: z.string(),
    digest: z.string(),
    config: z.object({
      env: z.array(z.string()),
      user: z.string(),
      workingDir: z.string(),
      entrypoint: z.array(z.string()),
      cmd: z.array(z.string()),
      stopSignal: z.string().default(''),
    }),
  }),
  vcpu: z.number().int(),
  memoryMib: z.number().int(),
  diskMib: z.number().int(),
  env: z.record(z.string(), z.string()),
  vsock: z.enum(['auto', 'on', 'off']),
  cid: z.number().int().nullable(),
  port: z.number().int().nullable(),
  state: z.discriminatedUnion('kind', [
    z.object({ kind: z.enum(['running', 'paused', 'stopping', 'stopped']), since: z.string() }),
    z.object({ kind: z.literal('failed'), since: z.string(), reason: z.string() }),
  ]),
  createdAt: z.string(),
  machine: z
    .object({
      vmm: z.string(),
      version: z.string(),
      accelerator: z.enum(['kvm', 'tcg']),
      acceleratorReason: z.string().optional(),
      vsock: z.object({ backend: z.enum(['kernel', 'daemon']), socket: z.string() }).nullable(),
    })
    .optional(),
  timings: z.record(z.string(), z.number()),
})

/** Those of that time had no limits. */
const noLimits = { cpus: null, diskBytesPerSecond: null, diskOperationsPerSecond: null }

/** @returns Those that are whole; a folder without a record, or with a damaged one, is nobody's. */
export async function readFileRecords(vms: string): Promise<SandboxRecord[]> {
  const records: SandboxRecord[] = []
  for (const name of await names(vms)) {
    const record = await readFileRecord(path.join(vms, name, RECORD_FILE))
    if (record !== undefined) records.push(record)
  }
  return records
}

async function readFileRecord(file: string): Promise<SandboxRecord | undefined> {
  try {
    const record = await readJsonFile(file, fileSchema)
    if (record === undefined) return undefined
    const { version: _, name, machine, cid, port, ...rest } = record
    const runs = ['running', 'paused', 'stopping'].includes(record.state.kind)
    return {
      ...unstarted,
      ...rest,
      name,
      machine,
      cid: runs ? cid : null,
      port: runs ? port : null,
      limits: noLimits,
      labels: {},
      metadata: {},
      operation: undefined,
    }
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'artifact-damaged') return undefined
    throw error
  }
}

async function names(folder: string): Promise<string[]> {
  try {
    return (await readdir(folder)).filter((name) => name.startsWith('sbx_'))
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return []
    throw error
  }
}
