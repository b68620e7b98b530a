/** The writable layer of a sandbox: a sparse ext4 file, copied from one that is formatted once per size. */
import { createHash } from 'node:crypto'
import { closeSync, fstatSync, ftruncateSync, openSync, readSync, statSync, writeSync } from 'node:fs'
import { chmod, stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import * as z from 'zod'
import { publishFile, publishJson, removeAbandoned } from '../artifact/publish.js'
import { readJsonFile } from '../process/json-file.js'
import { runCommand } from '../process/run.js'
import { type Piece, sparsePieces } from './sparse-pieces.js'

/** Below it the journal leaves little; above it even the empty file system's own tables grow large. */
export const MIN_DISK_MIB = 32
export const MAX_DISK_MIB = 1024 * 1024
/** Twice ext4's minimum. The default for a disk of some GiB is 64 MiB, all of it written to the host in time. */
const JOURNAL_MIB = 8
const MIB = 1024 * 1024
/** A disk of 4 GiB has 0.1 MiB written, one of 64 GiB 0.6, one of 1 TiB 12: with more, cp is as quick. */
const MAX_PIECES_BYTES = 1 * MIB

const piecesSchema = z.object({
  version: z.literal(2),
  /** Of the disk that they were found in. */
  mtimeMs: z.number(),
  pieces: z.array(z.object({ offset: z.int().nonnegative(), length: z.int().nonnegative() })),
  /** SHA-256 of the pieces as JSON: one wrong figure would be a disk that lacks something. */
  digest: z.string(),
})

export interface EmptyDiskOptions {
  cacheDirectory: string
  sizeMib: number
  signal?: AbortSignal | undefined
}

/**
 * Path of an empty, formatted disk of this size; a file that nobody writes to.
 *
 * @throws `bad-request` for a size out of bounds; `host-missing` without e2fsprogs; `command-failed` of mkfs.
 */
export async function emptyDisk({
  cacheDirectory,
  sizeMib,
  signal,
}: EmptyDiskOptions): Promise<{ path: string; made: boolean }> {
  if (!Number.isInteger(sizeMib) || sizeMib < MIN_DISK_MIB || sizeMib > MAX_DISK_MIB) {
    throw new BandSoxError(
      'bad-request',
      `cannot make a disk of ${sizeMib} MiB: it is a whole number from ${MIN_DISK_MIB} to ${MAX_DISK_MIB}`,
    )
  }
  const path = join(cacheDirectory, `empty-${sizeMib}.ext4`)
  if (await hasSize(path, sizeMib * MIB)) return { path, made: false }
  await removeAbandoned(cacheDirectory)
  await publishFile(path, (unfinished) => formatDisk(unfinished, sizeMib, signal))
  return { path, made: true }
}

/**
 * Copies an empty disk to a new file of mode 0600: only the pieces that were written, which are next to nothing. (Sharing its
 * blocks, where the file system can, would spare no more than that.)
 *
 * @throws `command-failed` with what cp says, which copies a disk whose pieces cannot be told.
 */
export async function copyEmptyDisk(from: string, to: string, signal?: AbortSignal): Promise<void> {
  await findPieces(from, signal)
  await copyDisk(from, to, signal)
}

/**
 * Copies any disk to a new file of mode 0600: by its pieces, where they are known ({@link findPieces}) and few, else by cp.
 *
 * @param from Nobody writes to it.
 * @throws `command-failed` with what cp says.
 */
export async function copyDisk(from: string, to: string, signal?: AbortSignal): Promise<void> {
  const pieces = await knownPieces(from)
  if (pieces !== undefined) return copyPieces(from, to, pieces)
  await copySparse(from, to, signal)
  await chmod(to, 0o600)
}

/**
 * Copies a disk: shares its blocks where the file system can (reflink), else copies only what was written.
 *
 * @throws `command-failed` with what cp says.
 */
export async function copySparse(from: string, to: string, signal?: AbortSignal): Promise<void> {
  await runCommand(['cp', '--reflink=auto', '--sparse=always', from, to], signal === undefined ? {} : { signal })
}

/** At once: 14 pieces of a disk of 4 GiB take 0.3 ms, and by the thread pool four times that. */
function copyPieces(from: string, to: string, pieces: readonly Piece[]): void {
  const source = openSync(from, 'r')
  try {
    const target = openSync(to, 'wx', 0o600)
    try {
      ftruncateSync(target, fstatSync(source).size)
      for (const piece of pieces) copyPiece(source, target, piece)
    } finally {
      closeSync(target)
    }
  } finally {
    closeSync(source)
  }
}

function copyPiece(from: number, to: number, { offset, length }: Piece): void {
  const buffer = Buffer.allocUnsafe(length)
  if (readSync(from, buffer, 0, length, offset) < length)
    throw new BandSoxError('artifact-damaged', `a disk ends before ${offset + length}`)
  if (writeSync(to, buffer, 0, length, offset) < length) throw new BandSoxError('no-space', 'no space for a disk')
}

/** Finds them once for each disk that is finished, and remembers them beside it, unless they are many, or cannot be found. */
export async function findPieces(disk: string, signal?: AbortSignal): Promise<void> {
  if ((await knownPieces(disk)) !== undefined) return
  const { mtimeMs, size } = await stat(disk)
  const pieces = await sparsePieces(disk, size, signal)
  if (pieces === undefined || pieces.reduce((sum, { length }) => sum + length, 0) > MAX_PIECES_BYTES) return
  const known: z.infer<typeof piecesSchema> = { version: 2, mtimeMs, pieces, digest: digestOf(pieces) }
  await publishJson(piecesFileOf(disk), known)
}

const piecesFileOf = (disk: string): string => `${disk}.pieces.json`

const digestOf = (pieces: readonly Piece[]): string =>
  createHash('sha256')
    .update(JSON.stringify(pieces.map(({ offset, length }) => [offset, length])))
    .digest('hex')

async function knownPieces(disk: string): Promise<readonly Piece[] | undefined> {
  const known = await readPieces(piecesFileOf(disk))
  if (known === undefined || known.digest !== digestOf(known.pieces)) return undefined
  return known.mtimeMs === statSync(disk).mtimeMs ? known.pieces : undefined
}

async function readPieces(file: string): Promise<z.infer<typeof piecesSchema> | undefined> {
  try {
    return await readJsonFile(file, piecesSchema)
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'artifact-damaged') return undefined // it is made anew
    throw error
  }
}

async function hasSize(path: string, sizeBytes: number): Promise<boolean> {
  try {
    return (await stat(path)).size === sizeBytes
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return false
    throw error
  }
}

async function formatDisk(path: string, sizeMib: number, signal?: AbortSignal): Promise<void> {
  await writeFile(path, '')
  await truncate(path, sizeMib * MIB)
  const argv = [
    'mkfs.ext4',
    '-q',
    '-F', // it is a file, and it is meant to be one
    ...['-m', '0'], // nothing reserved: root is the ordinary user in a sandbox
    ...['-J', `size=${JOURNAL_MIB}`],
    // Room to grow would take 2 MiB of every copy of a disk of 4 GiB: without it, 0.1 MiB.
    ...['-O', '^resize_inode'],
    // Tables count as written, since a sparse file reads as zeros: else the guest's kernel would write them in the
    // background, slowly, and fill the file. The root folder is root's, whoever runs this.
    ...['-E', 'lazy_itable_init=0,lazy_journal_init=1,root_owner=0:0'],
    path,
  ]
  // Debian keeps mkfs in a folder that is not in the PATH of ordinary users.
  const env = { ...process.env, PATH: `${process.env['PATH'] ?? ''}:/usr/sbin:/sbin` }
  await runCommand(argv, { env, ...(signal === undefined ? {} : { signal }) })
}
