/** What the storage takes of the host's disk, by what it is for. */
import type { Dirent } from 'node:fs'
import { lstat, readdir, statfs } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'
import type { Host } from './host.js'
import { storageFolders } from './prepare.js'

/** `stat` counts blocks of this size, whatever the file system's is (stat(2)). */
const BLOCK_BYTES = 512

export interface DiskUsage {
  storage: string
  /** What each part takes, in bytes of the disk: sparse files count by what was written, hard links once. */
  images: { count: number; bytes: number; unusedCount: number; unusedBytes: number }
  /** What images and snapshots take as well counts there. */
  sandboxes: { count: number; bytes: number; atRestCount: number; atRestBytes: number }
  snapshots: { count: number; bytes: number; unusedCount: number; unusedBytes: number }
  /** What new sandboxes start from. */
  templates: { count: number; bytes: number; unusedCount: number; unusedBytes: number }
  /** Kernel, initramfs, empty disks, database. */
  otherBytes: number
  freeBytes: number
  totalBytes: number
}

export async function diskUsage(host: Host): Promise<DiskUsage> {
  const { root } = host.store
  const seen = new Set<string>()
  const folders = storageFolders(root)
  const images = await host.images.list()
  // Images before sandboxes, which hold hard links to their disks.
  const imageBytes = await bytesOf(folders.images, seen)
  const unused = images.filter(({ usedBy }) => usedBy.length === 0)
  const snapshots = await snapshotUsage(host, 'snapshot', seen)
  const templates = await snapshotUsage(host, 'template', seen)
  const records = await host.store.list()
  let bytes = 0
  let atRestBytes = 0
  const atRest = records.filter(({ state }) => state.kind === 'stopped' || state.kind === 'failed')
  for (const record of records) {
    const own = await bytesOf(host.store.directoryOf(record.id), seen)
    bytes += own
    if (atRest.includes(record)) atRestBytes += own
  }
  const { bsize, bavail, blocks } = await statfs(root)
  return {
    storage: root,
    images: {
      count: images.length,
      bytes: imageBytes,
      unusedCount: unused.length,
      unusedBytes: unused.reduce((sum, { diskBytes, layerBytes }) => sum + diskBytes + layerBytes, 0),
    },
    ...{ snapshots, templates },
    sandboxes: { count: records.length, bytes, atRestCount: atRest.length, atRestBytes },
    otherBytes: await bytesOf(root, seen),
    freeBytes: bavail * bsize,
    totalBytes: blocks * bsize,
  }
}

/** Not in use: no running sandbox was started from it. */
async function snapshotUsage(
  host: Host,
  purpose: 'snapshot' | 'template',
  seen: Set<string>,
): Promise<DiskUsage['snapshots']> {
  const usage = { count: 0, bytes: 0, unusedCount: 0, unusedBytes: 0 }
  for (const { id } of await host.store.snapshots.list([purpose])) {
    const bytes = await bytesOf(host.store.snapshots.folderOf(id), seen)
    usage.count++
    usage.bytes += bytes
    if ((await host.store.runningOf(id)).length > 0) continue
    usage.unusedCount++
    usage.unusedBytes += bytes
  }
  return usage
}

/** @param seen Files that were counted already, and those of this count. What vanishes meanwhile takes nothing. */
export async function bytesOf(folder: string, seen = new Set<string>()): Promise<number> {
  let bytes = 0
  for (const entry of await entriesOf(folder)) {
    const file = path.join(folder, entry.name)
    if (entry.isDirectory()) bytes += await bytesOf(file, seen)
    bytes += await ownBytes(file, seen)
  }
  return bytes
}

async function ownBytes(file: string, seen: Set<string>): Promise<number> {
  try {
    const { dev, ino, blocks } = await lstat(file)
    const identity = `${dev}:${ino}`
    if (seen.has(identity)) return 0
    seen.add(identity)
    return blocks * BLOCK_BYTES
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return 0
    throw error
  }
}

async function entriesOf(folder: string): Promise<Dirent[]> {
  try {
    return await readdir(folder, { withFileTypes: true })
  } catch (error) {
    // A VM's own process may have a folder that is not ours to look into.
    if (isSystemError(error, 'ENOENT') || isSystemError(error, 'EACCES')) return []
    throw error
  }
}
