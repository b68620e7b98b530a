/** What a commit packs: the disk of a sandbox, whether it runs or not, or that of a snapshot. */
import { chmod, stat } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, requireAllowed } from '@bandsox/sdk'
import type { ImageOfSandbox, SandboxRecord } from '../store/record.js'
import type { SnapshotRecord } from '../store/snapshot-store.js'
import { agentOf } from './agent-of.js'
import { type Host, IMPORTED_ROOT, machineFiles } from './host.js'
import type { PackOptions } from './local-images.js'
import { claimSettled } from './settle.js'
import { layOutSnapshotDisk, restoreCopyBytes, saveDisk } from './snapshot/disk.js'
import { checkFiles, snapshotFiles } from './snapshot/files.js'
import { atStandstill } from './snapshot/standstill.js'
import { manifestOf } from './snapshot/whole.js'

/** Of the sandbox, while its disk is copied: should our process die, whoever comes next has it go on. */
export const OPERATION = 'commit'
const STAT_UNIT = 512

export type DiskOptions = Pick<PackOptions, 'onStoodStill' | 'onWarning' | 'signal'>

export interface DiskSource {
  /** For messages: `sandbox sbx_…`, `snapshot snp_…`. */
  title: string
  image: Readonly<ImageOfSandbox>
  diskMib: number
  /** What the machine that reads it takes of the host's disk, besides its own. @throws `storage-unusable`. */
  copiedBytes(): Promise<number>
  /**
   * Lays the disk out in the folder of a machine, which may write to it: what of it is others' too, it only reads.
   *
   * @returns Its files above the first one, as `SandboxRecord.layers`.
   */
  layOut(directory: string, options: DiskOptions): Promise<readonly string[]>
}

/**
 * @param name Id, name or unique id prefix: of a sandbox, else of a snapshot.
 * @throws as `SandboxLayers.find`.
 */
export async function findDisk(host: Host, name: string): Promise<DiskSource> {
  let id: string
  try {
    id = (await host.store.find(name)).id
  } catch (error) {
    if (!isNotFound(error)) throw error
    const snapshot = await host.store.snapshots.find(name).catch((other: unknown) => {
      throw isNotFound(other) ? neither(name, error) : other
    })
    return await snapshotDisk(host, snapshot)
  }
  const claim = await claimSettled(host, id, OPERATION)
  try {
    requireCommittable(claim.record)
    return sandboxDisk(host, claim.record)
  } finally {
    await claim.release()
  }
}

const isNotFound = (error: unknown): boolean => error instanceof BandSoxError && error.code === 'not-found'

const neither = (name: string, cause: unknown): BandSoxError =>
  new BandSoxError('not-found', `there is no sandbox ${JSON.stringify(name)}, nor such a snapshot`, {
    cause,
    hint: 'see what there is: bandsox vm list; bandsox snapshot list',
  })

function requireCommittable({ id, state, importedFrom, hasOwnRoot }: SandboxRecord): void {
  requireAllowed('commit', id, state)
  if (importedFrom !== undefined || hasOwnRoot)
    throw withoutLayer(`sandbox ${id}`, `start it, take its files, and import them: bandsox cp ${id}:/ FOLDER`)
  if (state.kind !== 'paused' || state.reason === undefined) return
  throw new BandSoxError('wrong-state', `cannot commit sandbox ${id}: it stands still (${state.reason})`, {
    hint: `let it run on first: bandsox vm resume ${id}`,
  })
}

const withoutLayer = (title: string, remedy: string): BandSoxError =>
  new BandSoxError(
    'bad-request',
    `cannot commit ${title}: it was imported, and its disk is not a layer over an image but a whole root file system`,
    { hint: `${remedy}; bandsox image import` },
  )

const sandboxDisk = (host: Host, { id, image, diskMib, layers }: SandboxRecord): DiskSource => ({
  title: `sandbox ${id}`,
  image,
  diskMib,
  copiedBytes: async () =>
    await writtenBytes(id, path.join(host.store.directoryOf(id), layers.at(-1) ?? machineFiles.overlay)),
  async layOut(directory, options) {
    // Nobody may start it, or stop it, before all of it is copied; after that nothing is wanted of it.
    const claim = await claimSettled(host, id, OPERATION)
    try {
      const { record } = claim
      requireCommittable(record)
      await (isThere(record) ? copyAtStandstill : copyDisk)(host, record, directory, options)
      return record.layers
    } finally {
      await claim.release()
    }
  },
})

async function writtenBytes(id: string, disk: string): Promise<number> {
  try {
    return (await stat(disk)).blocks * STAT_UNIT
  } catch (error) {
    if (!isSystemError(error, 'ENOENT')) throw error
    throw new BandSoxError('storage-unusable', `cannot commit sandbox ${id}: its disk is not there`, { cause: error })
  }
}

/** Whether it has a machine, which may write to the disk. */
const isThere = ({ state }: SandboxRecord): boolean => state.kind === 'running' || state.kind === 'paused'

async function copyAtStandstill(
  host: Host,
  record: SandboxRecord,
  directory: string,
  options: DiskOptions,
): Promise<void> {
  const { onStoodStill, onWarning, signal } = options
  const agent = agentOf(host, record)
  try {
    const still = { signal, keepsVsock: true }
    const { pauseMs, isFrozen } = await atStandstill(host, record, agent, still, () =>
      copyDisk(host, record, directory, options),
    )
    // One that was paused already has not been kept from anything.
    if (record.state.kind === 'running') onStoodStill(record.id, Math.round(pauseMs))
    if (!isFrozen) onWarning(`what programs in ${record.id} had not written to its disk yet is left out`)
  } finally {
    agent.close()
  }
}

/** The last file is a copy, for our machine to write to; those below, which nobody writes any more, are shared. */
async function copyDisk(host: Host, record: SandboxRecord, directory: string, { signal }: DiskOptions): Promise<void> {
  await saveDisk(host, record, directory, signal)
  await chmod(path.join(directory, record.layers.at(-1) ?? machineFiles.overlay), 0o600)
}

/** Of its files only those of the disk matter. */
async function snapshotDisk(host: Host, snapshot: SnapshotRecord): Promise<DiskSource> {
  const { id, seals } = snapshot
  const manifest = await manifestOf(host, snapshot)
  const { image, shape, rootFile, layers } = manifest
  const title = `snapshot ${id}`
  if (rootFile === IMPORTED_ROOT) throw withoutLayer(title, 'restore it, take the files of that sandbox: bandsox cp')
  const folder = host.store.snapshots.folderOf(id)
  return {
    title,
    image,
    diskMib: shape.diskMib,
    copiedBytes: async () => await restoreCopyBytes(host, folder, manifest),
    async layOut(directory, { signal }) {
      const names = [rootFile, snapshotFiles.overlay, ...layers]
      const files = manifest.files.filter(({ name }) => names.includes(name))
      await checkFiles(host, { folder, title }, files, seals, { signal })
      return await layOutSnapshotDisk(host, folder, manifest, directory)
    },
  }
}
