/** The files of a snapshot: written down when they are made, looked at quickly before each use, read whole on demand. */
import { statSync } from 'node:fs'
import { open } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import * as z from 'zod'
import { runCommand } from '../../process/run.js'
import type { Seals } from '../../store/snapshot-store.js'
import type { MachineState } from '../../vmm/vmm.js'
import type { Host } from '../host.js'
import { type RecordedSnapshotFile, sumSchema } from './manifest.js'

type Sum = z.infer<typeof sumSchema>

/** Names in a snapshot's folder; those of its disk's layers come on top. */
export const snapshotFiles = { memory: 'memory', devices: 'devices', overlay: 'overlay.ext4' } as const

export const stateIn = (folder: string): MachineState => ({
  memory: path.join(folder, snapshotFiles.memory),
  devices: path.join(folder, snapshotFiles.devices),
})

/** Syncs finished files, and writes down what they are. */
export async function recordFiles(
  host: Host,
  folder: string,
  names: readonly string[],
  signal?: AbortSignal,
): Promise<{ files: RecordedSnapshotFile[]; seals: Seals }> {
  const paths = names.map((name) => path.join(folder, name))
  for (const file of paths) await syncFile(file)
  const sums = await sumsOf(host, paths, signal)
  const seals: Seals = {}
  for (const [index, name] of names.entries()) seals[name] = sealOf(paths[index] ?? '')
  return { files: sums.map((sum, index) => ({ name: names[index] ?? '', ...sum })), seals }
}

async function syncFile(file: string): Promise<void> {
  await using handle = await open(file, 'r')
  await handle.sync()
}

/**
 * By a tool of the shim's: it reads no holes, of which a disk has gigabytes.
 *
 * @throws `command-failed`; `signal.reason`.
 */
async function sumsOf(host: Host, files: readonly string[], signal: AbortSignal | undefined): Promise<Sum[]> {
  if (files.length === 0) return []
  const { stdout } = await runCommand([host.shimPath, 'digest', ...files], signal === undefined ? {} : { signal })
  return z
    .array(sumSchema)
    .length(files.length)
    .parse(
      stdout
        .trimEnd()
        .split('\n')
        .map((line) => JSON.parse(line)),
    )
}

/** Whoever writes to a file changes its time. It is asked at once, as every restore does: by the thread pool it takes ten times as long. */
function sealOf(file: string): Seals[string] {
  const { ino, size, mtimeNs } = statSync(file, { bigint: true })
  return { inode: String(ino), sizeBytes: Number(size), modifiedNs: String(mtimeNs) }
}

/** What files belong to, for who is told that they are damaged. */
export interface FilesOf {
  folder: string
  /** Such as `snapshot snp_…`. */
  title: string
  /** What to do about it. Default: that of a snapshot. */
  hint?: string
}

function sealIfThere(file: string): Seals[string] | undefined {
  try {
    return sealOf(file)
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}

/**
 * Reads those files that have been touched since they were last found to be whole.
 *
 * @param options.all Reads all of them.
 * @returns How they are now; undefined when nothing had to be read.
 * @throws `snapshot-damaged` naming the file; `signal.reason`.
 */
export async function checkFiles(
  host: Host,
  of: FilesOf,
  files: readonly RecordedSnapshotFile[],
  seals: Seals,
  { all = false, signal }: { all?: boolean; signal?: AbortSignal | undefined } = {},
): Promise<Seals | undefined> {
  const now: Seals = {}
  const touched: RecordedSnapshotFile[] = []
  for (const recorded of files) {
    const { name, sizeBytes } = recorded
    const seal = sealIfThere(path.join(of.folder, name))
    if (seal === undefined) throw damaged(of, name, 'is missing')
    if (seal.sizeBytes !== sizeBytes) throw damaged(of, name, `has ${seal.sizeBytes} bytes instead of ${sizeBytes}`)
    now[name] = seal
    if (all || !isSame(seal, seals[name])) touched.push(recorded)
  }
  const paths = touched.map(({ name }) => path.join(of.folder, name))
  const sums = await sumsOf(host, paths, signal)
  for (const [index, { name, digest }] of touched.entries()) {
    const found = sums[index]?.digest
    if (found !== digest) throw damaged(of, name, `has the digest ${found} instead of ${digest}`)
  }
  return touched.length > 0 ? now : undefined
}

const isSame = (one: Seals[string], other: Seals[string] | undefined): boolean =>
  one !== undefined &&
  other !== undefined &&
  one.inode === other.inode &&
  one.sizeBytes === other.sizeBytes &&
  one.modifiedNs === other.modifiedNs

const damaged = ({ title, hint }: FilesOf, name: string, how: string): BandSoxError =>
  new BandSoxError('snapshot-damaged', `${name} of ${title} ${how}`, hint === undefined ? {} : { hint })
