/** The writable layer of a sandbox: a sparse ext4 file, copied from one that is formatted once per size. */
import { stat, truncate, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { publishFile, removeAbandoned } from '../artifact/publish.js'
import { runCommand } from '../process/run.js'

/** Below it the journal leaves little; above it even the empty file system's own tables grow large. */
export const MIN_DISK_MIB = 32
export const MAX_DISK_MIB = 1024 * 1024
/** Twice ext4's minimum. The default for a disk of some GiB is 64 MiB, all of it written to the host in time. */
const JOURNAL_MIB = 8
const MIB = 1024 * 1024

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
 * Copies a disk: shares its blocks where the file system can (reflink), else copies only what was written.
 *
 * @throws `command-failed` with what cp says.
 */
export async function copySparse(from: string, to: string, signal?: AbortSignal): Promise<void> {
  await runCommand(['cp', '--reflink=auto', '--sparse=always', from, to], signal === undefined ? {} : { signal })
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
