/** What a snapshot's folder says of itself: all that a restore depends on, and a checksum of each file. */
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { open, readFile } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, type Metadata, messageOf, printableLine } from '@bandsox/sdk'
import * as z from 'zod'

export const MANIFEST_FILE = 'manifest.json'
/** Its SHA-256, for who has nothing but the folder. */
export const DIGEST_FILE = 'manifest.sha256'
/** One of an import may be anything. */
const MAX_MANIFEST_BYTES = 4 * 1024 * 1024

const count = z.int().nonnegative()
const texts = z.record(z.string(), z.string())
/** What a person reads. */
const printed = z
  .string()
  .max(1_024)
  .refine((text) => printableLine(text) === text, 'has control characters')
/** A name inside the folder. */
const fileName = z.string().regex(/^[a-z0-9][a-z0-9.-]{0,63}$/)

/** As guest/internal/shim/digest tells it. */
export const sumSchema = z.strictObject({
  sizeBytes: count,
  /** What it takes of the disk: it may be sparse. */
  allocatedBytes: count,
  digest: z.string().regex(/^[0-9a-f]{64}$/),
})

export const fileSchema = sumSchema.extend({ name: fileName })

const machineSchema = z.strictObject({
  startedAt: z.string().optional(),
  vmm: printed,
  version: printed,
  accelerator: z.enum(['kvm', 'tcg']),
  acceleratorReason: z.string().optional(),
  vsock: z.strictObject({ backend: z.enum(['kernel', 'daemon', 'vmm']), socket: z.string() }).nullable(),
  vsockReason: z.string().optional(),
  serial: z.strictObject({ line: z.enum(['port', 'uart']), socket: z.string() }).optional(),
  jailed: z.boolean().optional(),
  jailReason: z.string().optional(),
  isFrozen: z.boolean().optional(),
  tracksChanges: z.boolean().optional(),
  lastState: z.string().optional(),
  pendingPort: z.number().optional(),
  fingerprint: texts.optional(),
})

const limit = z.number().positive().nullable()

export const manifestSchema = z.strictObject({
  format: z.literal(1),
  createdAt: z.iso.datetime(),
  kind: z.enum(['full', 'diff']),
  // A terminal shows them, and what was imported may say anything.
  sandbox: z.strictObject({ id: z.string().regex(/^sbx_[a-z2-7]{10}$/), name: printed.optional() }),
  image: z.strictObject({
    reference: printed,
    digest: z.string(),
    config: z.strictObject({
      env: z.array(z.string()),
      user: z.string(),
      workingDir: z.string(),
      entrypoint: z.array(z.string()),
      cmd: z.array(z.string()),
      stopSignal: z.string(),
    }),
  }),
  shape: z.strictObject({
    vcpu: z.int().positive(),
    memoryMib: z.int().positive(),
    diskMib: z.int().positive(),
    env: texts,
    labels: texts,
    metadata: z.custom<Metadata>((value) => z.record(z.string(), z.json()).safeParse(value).success),
    limits: z.strictObject({ cpus: limit, diskBytesPerSecond: limit, diskOperationsPerSecond: limit }),
    vsock: z.enum(['auto', 'on', 'off']),
  }),
  machine: machineSchema,
  /** SHA-256 of what it was booted with. */
  boot: z.strictObject({ kernel: z.string(), initramfs: z.string() }).optional(),
  /** Guest port that the agent listens on. */
  port: z
    .int()
    .min(1)
    .max(2 ** 32 - 1),
  /** The root disk is written to as well: of an imported sandbox. */
  rootFile: fileName,
  /** Files of the disk above the first one, lowest first. */
  layers: z.array(fileName).max(64),
  isFrozen: z.boolean(),
  pauseMs: z.number().nonnegative(),
  files: z.array(fileSchema).max(128),
})

export type Manifest = z.infer<typeof manifestSchema>
export type RecordedSnapshotFile = z.infer<typeof fileSchema>

export const digestOf = (content: string | Buffer): string => createHash('sha256').update(content).digest('hex')

/** On the disk when it returns. @returns Its digest. */
export async function writeManifest(folder: string, manifest: Manifest): Promise<string> {
  const content = `${JSON.stringify(manifest, undefined, 2)}\n`
  await writeSynced(path.join(folder, MANIFEST_FILE), content)
  await writeSynced(path.join(folder, DIGEST_FILE), `${digestOf(content)}\n`)
  return digestOf(content)
}

async function writeSynced(path: string, content: string): Promise<void> {
  await using file = await open(path, 'wx', 0o600)
  await file.writeFile(content)
  await file.sync()
}

/** @param digest What it must have. @throws `snapshot-damaged`. */
export async function readManifest(folder: string, id: string, digest: string): Promise<Manifest> {
  const content = readManifestFile(folder, id)
  if (digestOf(content) !== digest)
    throw new BandSoxError(
      'snapshot-damaged',
      `${MANIFEST_FILE} of snapshot ${id} is not as it was written: its SHA-256 is ${digestOf(content)} instead of ${digest}`,
    )
  return parseManifest(content)
}

/** Nobody here needs what is written beside the manifest; who has nothing but the folder does. @throws `snapshot-damaged`. */
export async function checkDigestFile(folder: string, id: string, digest: string): Promise<void> {
  const written = await readFile(path.join(folder, DIGEST_FILE), 'latin1').catch((error: unknown) => {
    if (!isSystemError(error, 'ENOENT')) throw error
    throw new BandSoxError('snapshot-damaged', `snapshot ${id} has lost its ${DIGEST_FILE}`, { cause: error })
  })
  if (written !== `${digest}\n`)
    throw new BandSoxError('snapshot-damaged', `${DIGEST_FILE} of snapshot ${id} is not as it was written`)
}

function readManifestFile(folder: string, id: string): Buffer {
  try {
    return readFileSync(path.join(folder, MANIFEST_FILE))
  } catch (error) {
    if (!isSystemError(error, 'ENOENT')) throw error
    throw new BandSoxError('snapshot-damaged', `snapshot ${id} has lost its ${MANIFEST_FILE}`, { cause: error })
  }
}

/** @throws `snapshot-damaged` for what no version of ours has written. */
export function parseManifest(content: Buffer): Manifest {
  if (content.length > MAX_MANIFEST_BYTES)
    throw new BandSoxError('snapshot-damaged', `its ${MANIFEST_FILE} has ${content.length} bytes: that is no manifest`)
  try {
    return manifestSchema.parse(JSON.parse(content.toString('utf8')))
  } catch (error) {
    throw new BandSoxError(
      'snapshot-damaged',
      `its ${MANIFEST_FILE} is not one of ours, or of a newer version: ${messageOf(error).slice(0, 500)}`,
      { cause: error },
    )
  }
}
