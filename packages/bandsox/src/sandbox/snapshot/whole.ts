/**
 * The whole state of a snapshot that holds changes only: made once, of it and of what it builds on.
 *
 * It lies in the snapshot's folder, in one of its own that is named `whole`, with the manifest that the snapshot would have if it built on
 * nothing. So it can become that (merge): its digest in the snapshot's row is the moment at which it has, and what is left then is to move
 * files, which whoever comes next goes on with.
 */
import { mkdir, open, readFile, rename, rm } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import * as z from 'zod'
import { readJsonFile, writeJsonFile } from '../../process/json-file.js'
import { waitForLockFile } from '../../process/lock-file.js'
import type { Seals, SnapshotRecord } from '../../store/snapshot-store.js'
import type { MachineState } from '../../vmm/vmm.js'
import { requireFreeSpace } from '../free-space.js'
import type { Host } from '../host.js'
import { checkFiles, recordFiles, snapshotFiles, stateIn } from './files.js'
import { DIGEST_FILE, digestOf, MANIFEST_FILE, type Manifest, readManifest, writeManifest } from './manifest.js'

const WHOLE = 'whole'
/** How its files were when they were last found to be whole. */
const SEALS_FILE = 'seals.json'
/** Its last use is known so well: with many restores a second, each would write to the database for nothing. */
const USE_KNOWN_MS = 10_000
const REMOVAL = { recursive: true, force: true } as const
/** What says that it is not as it was made. */
const DAMAGED: readonly string[] = ['snapshot-damaged', 'artifact-damaged']
const STATE_FILES: readonly string[] = [snapshotFiles.memory, snapshotFiles.devices]

const sealsSchema = z.record(
  z.string(),
  z.strictObject({ inode: z.string(), sizeBytes: z.number(), modifiedNs: z.string() }),
)

interface Whole {
  manifest: Manifest
  manifestDigest: string
  seals: Seals
}

/** @throws `not-found` for one that is not whole yet; `snapshot-damaged`. */
export async function manifestOf(host: Host, { id, manifestDigest }: SnapshotRecord): Promise<Manifest> {
  if (manifestDigest === undefined) throw new BandSoxError('not-found', `snapshot ${id} is not whole yet`)
  const folder = host.store.snapshots.folderOf(id)
  try {
    return await readManifest(folder, id, manifestDigest)
  } catch (error) {
    if (!(await isMerged(folder, manifestDigest))) throw error
  }
  await finishMerge(folder)
  return await readManifest(folder, id, manifestDigest)
}

/**
 * The state that a snapshot is restored from. One that holds changes only is made whole first, once, whoever asks at the same time.
 *
 * @throws `snapshot-damaged` also for what it builds on; `no-space`; `signal.reason`.
 */
export async function wholeStateOf(
  host: Host,
  record: SnapshotRecord,
  manifest: Manifest,
  signal?: AbortSignal,
): Promise<MachineState> {
  const folder = host.store.snapshots.folderOf(record.id)
  if (manifest.kind === 'full') return stateIn(folder)
  if ((await keptWhole(host, record.id, { signal })) !== undefined) return stateIn(path.join(folder, WHOLE))
  return await withLock(host, record.id, signal, async () => {
    const now = await host.store.snapshots.read(record.id)
    if (now === undefined || now.base === undefined) return stateIn(folder) // merged meanwhile
    await obtainWhole(host, now, await manifestOf(host, now), signal)
    return stateIn(path.join(folder, WHOLE))
  })
}

/**
 * Makes a snapshot independent of the one that it builds on. Harmless for one that is.
 *
 * @throws as {@link wholeStateOf}; `not-found`.
 */
export async function mergeSnapshot(host: Host, id: string, signal?: AbortSignal): Promise<SnapshotRecord> {
  return await withLock(host, id, signal, async () => {
    const record = await host.store.snapshots.find(id)
    const manifest = await manifestOf(host, record)
    if (manifest.kind === 'full') return record
    const { manifestDigest, seals } = await obtainWhole(host, record, manifest, signal)
    const now = { manifestDigest, seals: { ...record.seals, ...seals } }
    const merged = await host.store.snapshots.becomeWhole(id, record.manifestDigest, now)
    if (merged === undefined) throw new BandSoxError('not-found', `snapshot ${id} was removed meanwhile`)
    await finishMerge(host.store.snapshots.folderOf(id))
    host.info(`merged ${id} with what it built on`)
    return merged
  })
}

/** The files of a state that was made whole, for who looks at all of a snapshot. @throws `snapshot-damaged`. */
export async function checkKeptWhole(host: Host, id: string, signal?: AbortSignal): Promise<Manifest | undefined> {
  return (await keptWhole(host, id, { all: true, signal, throws: true }))?.manifest
}

/** What a snapshot that holds changes builds on, the nearest first, until one that is whole. @throws `snapshot-damaged`. */
export async function basesOf(
  host: Host,
  record: SnapshotRecord,
): Promise<{ record: SnapshotRecord; manifest: Manifest }[]> {
  const bases = []
  let above = record
  for (;;) {
    const below = above.base === undefined ? undefined : await host.store.snapshots.read(above.base)
    if (below === undefined)
      throw new BandSoxError(
        'snapshot-damaged',
        `snapshot ${above.id} has lost ${above.base ?? 'the one that it builds on'}`,
      )
    const manifest = await manifestOf(host, below)
    bases.push({ record: below, manifest })
    if (manifest.kind === 'full') return bases
    above = below
  }
}

async function withLock<T>(
  host: Host,
  id: string,
  signal: AbortSignal | undefined,
  work: () => Promise<T>,
): Promise<T> {
  const lock = host.store.snapshots.lockOf(id)
  const release = await waitForLockFile(lock, `make the state of ${id} whole`, { signal })
  try {
    return await work()
  } finally {
    await release()
  }
}

/** The caller has the lock. */
async function obtainWhole(
  host: Host,
  record: SnapshotRecord,
  manifest: Manifest,
  signal: AbortSignal | undefined,
): Promise<Whole> {
  return (await keptWhole(host, record.id, { signal })) ?? (await makeWhole(host, record, manifest, signal))
}

/**
 * @param options.throws Says what is wrong with it. Else it is to be made anew.
 * @returns undefined when there is none that is as it was made.
 */
async function keptWhole(
  host: Host,
  id: string,
  { all = false, throws = false, signal }: { all?: boolean; throws?: boolean; signal?: AbortSignal | undefined },
): Promise<Whole | undefined> {
  const folder = path.join(host.store.snapshots.folderOf(id), WHOLE)
  const manifestDigest = await readText(path.join(folder, DIGEST_FILE))
  if (manifestDigest === undefined) return undefined
  try {
    const manifest = await readManifest(folder, id, manifestDigest.trim())
    const known = (await readJsonFile(path.join(folder, SEALS_FILE), sealsSchema)) ?? {}
    const files = manifest.files.filter(({ name }) => STATE_FILES.includes(name))
    const now = await checkFiles(host, { folder, title: `snapshot ${id}` }, files, known, { all, signal })
    if (now !== undefined) await writeJsonFile(path.join(folder, SEALS_FILE), now)
    return { manifest, manifestDigest: manifestDigest.trim(), seals: now ?? known }
  } catch (error) {
    if (!(error instanceof BandSoxError) || !DAMAGED.includes(error.code)) throw error
    const what = `what was made of snapshot ${id} and its bases is damaged: ${error.message}`
    if (throws)
      throw new BandSoxError('snapshot-damaged', what, { cause: error, hint: 'a restore, or a merge, makes it anew' })
    host.warn(`${what}; it is made anew`)
    return undefined
  }
}

/** The caller has the lock. */
async function makeWhole(
  host: Host,
  record: SnapshotRecord,
  manifest: Manifest,
  signal: AbortSignal | undefined,
): Promise<Whole> {
  const { id } = record
  const folder = host.store.snapshots.folderOf(id)
  const bases = (await basesOf(host, record)).reverse()
  for (const base of bases) await checkSnapshotFiles(host, base.record, base.manifest, signal)
  const all = [...bases.map((base) => base.manifest), manifest]
  await requireFreeSpace(host.store.root, sum(all.map(memoryBytes)), `the state of snapshot ${id}`)
  const [first, ...changes] = bases.map((base) => stateIn(host.store.snapshots.folderOf(base.record.id)))
  const own = stateIn(folder)
  const [oldest = own, ...later] = [...changes, own]
  if (first === undefined) throw new BandSoxError('internal', `snapshot ${id} builds on nothing`)
  const unfinished = host.store.snapshots.unfinishedWholeOf(id)
  await rm(unfinished, REMOVAL)
  await mkdir(unfinished, { mode: 0o700 })
  try {
    await host.vmm.mergeState(first, [oldest, ...later], unfinished, signal)
    const { files: state, seals } = await recordFiles(host, unfinished, STATE_FILES, signal)
    const files = [...state, ...manifest.files.filter(({ name }) => !STATE_FILES.includes(name))]
    const whole: Manifest = { ...manifest, kind: 'full', files }
    const manifestDigest = await writeManifest(unfinished, whole)
    await writeJsonFile(path.join(unfinished, SEALS_FILE), seals)
    await syncFolder(unfinished)
    await rm(path.join(folder, WHOLE), REMOVAL) // damaged, or it would have been taken
    await rename(unfinished, path.join(folder, WHOLE))
    await syncFolder(folder)
    return { manifest: whole, manifestDigest, seals }
  } catch (error) {
    throw isSystemError(error, 'ENOSPC') || /no space left on device/i.test(messageOf(error))
      ? new BandSoxError('no-space', `no space to make the state of snapshot ${id} whole`, { cause: error })
      : error
  } finally {
    await rm(unfinished, REMOVAL)
  }
}

const memoryBytes = ({ files }: Manifest): number =>
  sum(files.filter(({ name }) => STATE_FILES.includes(name)).map(({ allocatedBytes }) => allocatedBytes))

const sum = (numbers: number[]): number => numbers.reduce((total, number) => total + number, 0)

/**
 * A user's snapshot is read whole. Of a template, which every new sandbox starts from, what was touched since it was last found to be whole.
 *
 * @throws `snapshot-damaged`.
 */
export async function checkSnapshotFiles(
  host: Host,
  { id, seals, usedAt, purpose }: SnapshotRecord,
  { files }: Manifest,
  signal: AbortSignal | undefined,
): Promise<void> {
  const of = { folder: host.store.snapshots.folderOf(id), title: `snapshot ${id}` }
  const now = await checkFiles(host, of, files, seals, { all: purpose === 'snapshot', signal })
  const isFresh = usedAt !== undefined && Date.now() - Date.parse(usedAt) < USE_KNOWN_MS
  if (now !== undefined || !isFresh) await host.store.snapshots.used(id, now)
}

/** Whether it has become what its digest says, and its files have not all moved yet. */
async function isMerged(folder: string, digest: string): Promise<boolean> {
  const content = await readText(path.join(folder, WHOLE, MANIFEST_FILE))
  return content !== undefined && digestOf(content) === digest
}

/** Any number may do so at once, and each may die at it: the manifest comes last. */
async function finishMerge(folder: string): Promise<void> {
  for (const name of [...STATE_FILES, DIGEST_FILE, MANIFEST_FILE])
    await rename(path.join(folder, WHOLE, name), path.join(folder, name)).catch((error: unknown) => {
      if (!isSystemError(error, 'ENOENT')) throw error // somebody else has
    })
  await syncFolder(folder)
  await rm(path.join(folder, WHOLE), REMOVAL)
}

async function readText(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8')
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}

async function syncFolder(folder: string): Promise<void> {
  await using handle = await open(folder, 'r')
  await handle.sync()
}

/** What a state that was made whole takes of the disk, besides the snapshot itself. */
export async function keptWholeBytes(host: Host, id: string): Promise<number> {
  const folder = path.join(host.store.snapshots.folderOf(id), WHOLE)
  const digest = await readText(path.join(folder, DIGEST_FILE))
  if (digest === undefined) return 0
  const manifest = await readManifest(folder, id, digest.trim()).catch((error: unknown) => {
    if (error instanceof BandSoxError && error.code === 'snapshot-damaged') return undefined // a restore makes it anew
    throw error
  })
  return manifest === undefined ? 0 : memoryBytes(manifest)
}
