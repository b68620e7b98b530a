/**
 * The writable disk of a snapshot, and of what is started from it.
 *
 * Where the VMM can put layers over a disk, nothing is copied of what others have as well: a file that is finished is shared by hard links,
 * and each machine writes to a layer of its own. Elsewhere the disk is one file, whose blocks are shared where the file system can
 * (reflink), or copied as far as they were written.
 */
import { statSync } from 'node:fs'
import { chmod, chown, link } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { copyDisk, copySparse, findPieces } from '../../image/disk.js'
import type { SandboxRecord } from '../../store/record.js'
import { type Host, IMPORTED_ROOT, machineFiles } from '../host.js'
import { snapshotFiles } from './files.js'
import type { Manifest } from './manifest.js'

const MIB = 1024 * 1024
const BLOCK_BYTES = 512
const ALL_READ = 0o444
/** Of a sandbox that was restored again and again. Above it the last one is copied instead: a machine opens all of them. */
export const MAX_LAYERS = 8
export const layerName = (index: number): string => `layer-${index}.qcow2`

/** The root disk of a sandbox: the image's, or the earlier project's. */
export const rootFileOf = ({ hasOwnRoot }: Pick<SandboxRecord, 'hasOwnRoot'>): string =>
  hasOwnRoot ? IMPORTED_ROOT : machineFiles.root

/** What of a sandbox's disk its machine writes to. */
export const writtenDisks = (record: Pick<SandboxRecord, 'layers' | 'hasOwnRoot'>): string[] => [
  record.layers.at(-1) ?? machineFiles.overlay,
  ...(record.hasOwnRoot ? [IMPORTED_ROOT] : []),
]

/**
 * Puts the disk of a machine that stands still into a snapshot's folder, or another machine's.
 *
 * @returns Names of its files there.
 */
export async function saveDisk(
  host: Host,
  record: SandboxRecord,
  folder: string,
  signal?: AbortSignal,
): Promise<string[]> {
  const directory = host.store.directoryOf(record.id)
  const files = [machineFiles.overlay, ...record.layers]
  const written = files.at(-1)
  for (const name of files) {
    const [from, to] = [path.join(directory, name), path.join(folder, name)]
    if (name === written) await copyFinished(from, to, signal)
    else await link(from, to)
  }
  const root = rootFileOf(record)
  if (root === IMPORTED_ROOT) await copyFinished(path.join(directory, root), path.join(folder, root), signal)
  else await link(path.join(directory, root), path.join(folder, root))
  return [root, ...files]
}

async function copyFinished(from: string, to: string, signal: AbortSignal | undefined): Promise<void> {
  await copySparse(from, to, signal)
  if (process.getuid?.() === 0) await chown(to, 0, 0)
  await chmod(to, ALL_READ)
}

/**
 * Makes the disk of a new sandbox in its directory.
 *
 * @param folder Of the snapshot.
 * @returns The files above the first one.
 */
export async function layOutSnapshotDisk(
  host: Host,
  folder: string,
  { layers, rootFile, shape }: Pick<Manifest, 'layers' | 'rootFile' | 'shape'>,
  directory: string,
): Promise<string[]> {
  const share = (name: string) => link(path.join(folder, name), path.join(directory, name))
  const copy = (name: string) => copyDisk(path.join(folder, name), path.join(directory, name))
  await (rootFile === IMPORTED_ROOT ? copy(rootFile) : share(rootFile))
  const files = [snapshotFiles.overlay, ...layers]
  const last = files.at(-1) ?? snapshotFiles.overlay
  const { diskLayers } = await host.vmm.capabilities()
  if (!diskLayers || layers.length >= MAX_LAYERS) {
    for (const name of files.slice(0, -1)) await share(name)
    await copy(last)
    return [...layers]
  }
  for (const name of files) await share(name)
  const top = layerName(layers.length + 1)
  await host.vmm.makeLayer(path.join(directory, top), shape.diskMib * MIB)
  return [...layers, top]
}

/** Has what each restore copies of it be copied quickly. What is in the folder is finished. */
export async function prepareCopies(
  host: Host,
  folder: string,
  { layers }: Pick<Manifest, 'layers'>,
  signal?: AbortSignal,
): Promise<void> {
  const { diskLayers } = await host.vmm.capabilities()
  if (!diskLayers) await findPieces(path.join(folder, layers.at(-1) ?? snapshotFiles.overlay), signal)
}

/** What {@link layOutSnapshotDisk} copies, in bytes. @throws `snapshot-damaged`. */
export async function restoreCopyBytes(
  host: Host,
  folder: string,
  { layers, rootFile }: Pick<Manifest, 'layers' | 'rootFile'>,
): Promise<number> {
  const { diskLayers } = await host.vmm.capabilities()
  const isShared = diskLayers && layers.length < MAX_LAYERS
  const copied = [
    ...(isShared ? [] : [layers.at(-1) ?? snapshotFiles.overlay]),
    ...(rootFile === IMPORTED_ROOT ? [rootFile] : []),
  ]
  return copied.reduce((sum, name) => sum + allocatedBytes(path.join(folder, name)), 0)
}

function allocatedBytes(file: string): number {
  try {
    return statSync(file).blocks * BLOCK_BYTES
  } catch (error) {
    if (!isSystemError(error, 'ENOENT')) throw error
    throw new BandSoxError('snapshot-damaged', `${file} is missing`, { cause: error })
  }
}
