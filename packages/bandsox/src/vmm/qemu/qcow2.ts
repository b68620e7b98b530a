/**
 * The layers of a writable disk as qcow2 files: made by ourselves, checked before QEMU opens one.
 *
 * A layer was written by a QEMU that its guest may have taken over, and its header can name files that the next QEMU would open: so
 * nothing is taken that ours does not have, and what is below a layer is told to QEMU by us.
 *
 * @see QEMU docs/interop/qcow2.txt. All numbers are big-endian.
 */
import { constants } from 'node:fs'
import { type FileHandle, open, rm } from 'node:fs/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'

const MAGIC = 0x514649fb // "QFI" and 0xfb
const VERSION = 3
/** QEMU's default. */
const CLUSTER_BITS = 16
const CLUSTER_BYTES = 1 << CLUSTER_BITS
/** 16 bits for each count, QEMU's default. */
const REFCOUNT_ORDER = 4
const SECTOR_BYTES = 512
const ENTRY_BYTES = 8
const ENTRIES_IN_CLUSTER = CLUSTER_BYTES / ENTRY_BYTES
/** What one entry of the first-level table stands for: 512 MiB. */
const L1_ENTRY_BYTES = CLUSTER_BYTES * ENTRIES_IN_CLUSTER
/** So that one cluster holds the first-level table: 4 TiB. */
const MAX_SIZE_BYTES = L1_ENTRY_BYTES * ENTRIES_IN_CLUSTER
/** The shortest of version 3, which ours have; QEMU writes the longer one, with the kind of compression, when it writes it anew. */
const HEADER_BYTES = 104
const LONG_HEADER_BYTES = 112
/** Header and extensions; QEMU's own, when it has written them anew, take some hundred. */
const HEAD_BYTES = 4096

/** Where a new layer has what: a cluster each. */
const at = { header: 0, refcountTable: 1, refcounts: 2, l1: 3 }
const CLUSTERS = 4

const field = {
  magic: 0,
  version: 4,
  backingOffset: 8,
  backingBytes: 16,
  clusterBits: 20,
  size: 24,
  encryption: 32,
  l1Entries: 36,
  l1Offset: 40,
  refcountTableOffset: 48,
  refcountTableClusters: 56,
  snapshots: 60,
  incompatible: 72,
  compatible: 80,
  autoclear: 88,
  refcountOrder: 96,
  headerBytes: 100,
  compression: 104,
} as const

/** Bits of what a reader must know of; ours have none, nor does QEMU set one of itself in them. */
const INCOMPATIBLE = ['was not closed', 'is marked as corrupt', 'keeps its data in another file']
const EXTENSION_END = 0
/** Names for features, which QEMU writes for messages alone. */
const EXTENSION_FEATURE_NAMES = 0x6803f857
const EXTENSIONS: Readonly<Record<number, string>> = {
  87539319: 'encryption',
  595929205: 'bitmaps',
  1145132097: 'the name of a file for its data',
  3799591626: 'the format of a file below it',
}

/**
 * Makes an empty layer over a disk of `sizeBytes`, for nobody but us.
 *
 * @throws `bad-request` for a size that no layer can have, or when there is such a file; system errors such as `ENOSPC`.
 */
export async function createLayer(file: string, sizeBytes: number): Promise<void> {
  if (
    !Number.isSafeInteger(sizeBytes) ||
    sizeBytes <= 0 ||
    sizeBytes % SECTOR_BYTES !== 0 ||
    sizeBytes > MAX_SIZE_BYTES
  )
    throw new BandSoxError(
      'bad-request',
      `cannot make a disk layer of ${sizeBytes} bytes: its size is a multiple of ${SECTOR_BYTES}, at most ${MAX_SIZE_BYTES}`,
    )
  const handle = await open(file, 'wx', 0o600).catch((error: unknown) => {
    if (!isSystemError(error, 'EEXIST')) throw error
    throw new BandSoxError('bad-request', `cannot make the disk layer ${file}: there is such a file`, { cause: error })
  })
  try {
    await writeLayer(handle, sizeBytes)
  } catch (error) {
    await rm(file, { force: true })
    throw error
  } finally {
    await handle.close()
  }
}

async function writeLayer(handle: FileHandle, sizeBytes: number): Promise<void> {
  const write = async (cluster: number, data: Buffer) => {
    await handle.write(data, 0, data.length, cluster * CLUSTER_BYTES)
  }
  await handle.truncate(CLUSTERS * CLUSTER_BYTES) // the first-level table is all zero: everything is in what is below
  const table = Buffer.alloc(ENTRY_BYTES)
  table.writeBigUInt64BE(BigInt(at.refcounts * CLUSTER_BYTES))
  await write(at.refcountTable, table)
  const counts = Buffer.alloc(CLUSTERS * 2)
  for (let cluster = 0; cluster < CLUSTERS; cluster++) counts.writeUInt16BE(1, cluster * 2)
  await write(at.refcounts, counts)
  await write(at.header, header(sizeBytes)) // last: without it the file is no layer
}

function header(sizeBytes: number): Buffer {
  const bytes = Buffer.alloc(HEADER_BYTES + ENTRY_BYTES) // the extensions end at once
  bytes.writeUInt32BE(MAGIC, field.magic)
  bytes.writeUInt32BE(VERSION, field.version)
  bytes.writeUInt32BE(CLUSTER_BITS, field.clusterBits)
  bytes.writeBigUInt64BE(BigInt(sizeBytes), field.size)
  bytes.writeUInt32BE(l1Entries(sizeBytes), field.l1Entries)
  bytes.writeBigUInt64BE(BigInt(at.l1 * CLUSTER_BYTES), field.l1Offset)
  bytes.writeBigUInt64BE(BigInt(at.refcountTable * CLUSTER_BYTES), field.refcountTableOffset)
  bytes.writeUInt32BE(1, field.refcountTableClusters)
  bytes.writeUInt32BE(REFCOUNT_ORDER, field.refcountOrder)
  bytes.writeUInt32BE(HEADER_BYTES, field.headerBytes)
  return bytes
}

const l1Entries = (sizeBytes: number): number => Math.ceil(sizeBytes / L1_ENTRY_BYTES)

/**
 * Looks at the header of a layer, and at nothing else: what is wrong behind it is its own guest's affair.
 *
 * @throws `artifact-damaged` for a file that is no layer as we make them; system errors such as `ENOENT`.
 */
export async function checkLayer(file: string, sizeBytes: number): Promise<void> {
  const flaw = await layerFlaw(file, sizeBytes)
  if (flaw === undefined) return
  throw new BandSoxError('artifact-damaged', `cannot use the disk layer ${file}: ${flaw}`, {
    hint: 'its file was changed, by a guest that broke out or by somebody else: do not trust it, use an earlier snapshot',
  })
}

async function layerFlaw(file: string, sizeBytes: number): Promise<string | undefined> {
  let handle: FileHandle
  try {
    handle = await open(file, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (error) {
    if (isSystemError(error, 'ELOOP')) return 'it is a symbolic link'
    throw error
  }
  try {
    const stat = await handle.stat()
    if (!stat.isFile()) return 'it is not a file'
    const head = Buffer.alloc(HEAD_BYTES)
    const { bytesRead } = await handle.read(head, 0, HEAD_BYTES, 0)
    return headFlaw(head.subarray(0, bytesRead), { sizeBytes, fileBytes: stat.size })
  } finally {
    await handle.close()
  }
}

/** What is wrong with the beginning of a layer; undefined when nothing is. */
export function headFlaw(
  head: Buffer,
  { sizeBytes, fileBytes }: { sizeBytes: number; fileBytes: number },
): string | undefined {
  if (head.length < HEADER_BYTES + ENTRY_BYTES) return `it ends after ${head.length} bytes`
  const word = (offset: number) => head.readUInt32BE(offset)
  const long = (offset: number) => head.readBigUInt64BE(offset)
  if (word(field.magic) !== MAGIC) return 'it is not a qcow2 file'
  if (word(field.version) !== VERSION) return `it is qcow2 of version ${word(field.version)}, not ${VERSION}`
  if (long(field.backingOffset) !== 0n || word(field.backingBytes) !== 0) return 'it names a file below it'
  const features = long(field.incompatible)
  if (features !== 0n)
    return `it ${INCOMPATIBLE.find((_, bit) => (features >> BigInt(bit)) & 1n) ?? featuresUnknown(features)}`
  for (const others of [field.compatible, field.autoclear])
    if (long(others) !== 0n) return `it ${featuresUnknown(long(others))}`
  if (word(field.encryption) !== 0) return 'it is encrypted'
  if (long(field.size) !== BigInt(sizeBytes)) return `it is a disk of ${long(field.size)} bytes, not ${sizeBytes}`
  if (word(field.clusterBits) !== CLUSTER_BITS || word(field.refcountOrder) !== REFCOUNT_ORDER)
    return 'its clusters or counts are not of the size that ours have'
  if (word(field.snapshots) !== 0) return 'it has snapshots inside'
  if (word(field.l1Entries) !== l1Entries(sizeBytes)) return `its table has ${word(field.l1Entries)} entries`
  for (const table of [field.l1Offset, field.refcountTableOffset])
    if (long(table) % BigInt(CLUSTER_BYTES) !== 0n || long(table) === 0n || long(table) >= BigInt(fileBytes))
      return 'one of its tables is not in it'
  const headerBytes = word(field.headerBytes)
  if (headerBytes !== HEADER_BYTES && headerBytes !== LONG_HEADER_BYTES) return `its header has ${headerBytes} bytes`
  if (headerBytes === LONG_HEADER_BYTES && long(field.compression) !== 0n) return 'it is compressed in an unknown way'
  return extensionFlaw(head, headerBytes)
}

const featuresUnknown = (features: bigint): string => `has features that ours have not (0x${features.toString(16)})`

function extensionFlaw(head: Buffer, start: number): string | undefined {
  for (let offset = start; offset + ENTRY_BYTES <= head.length; ) {
    const kind = head.readUInt32BE(offset)
    if (kind === EXTENSION_END) return undefined
    if (kind !== EXTENSION_FEATURE_NAMES)
      return `its header has an extension that ours have not: ${EXTENSIONS[kind] ?? `0x${kind.toString(16)}`}`
    offset += ENTRY_BYTES + Math.ceil(head.readUInt32BE(offset + 4) / ENTRY_BYTES) * ENTRY_BYTES
  }
  return `its header does not end within ${head.length} bytes`
}
