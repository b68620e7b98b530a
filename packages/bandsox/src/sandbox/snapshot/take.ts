/** Takes a snapshot of a sandbox, which goes on. */
import { BandSoxError, isSystemError, messageOf, type SnapshotOptions } from '@bandsox/sdk'
import type { Agent } from '../../guest/agent.js'
import type { SandboxRecord } from '../../store/record.js'
import type { NewSnapshot, SnapshotRecord, UnfinishedSnapshot } from '../../store/snapshot-store.js'
import type { MachineState } from '../../vmm/vmm.js'
import { checkedMetadata, checkedName } from '../description.js'
import { requireFreeSpace } from '../free-space.js'
import type { Host } from '../host.js'
import { loadBoot } from '../prepare.js'
import { prepareCopies, rootFileOf, saveDisk } from './disk.js'
import { recordFiles, snapshotFiles } from './files.js'
import { type Manifest, type RecordedSnapshotFile, writeManifest } from './manifest.js'
import { atStandstill } from './standstill.js'
import { requireBase, requireTracking, saveTracked } from './tracking.js'

/** What even an idle guest has in use; what it really has, its VMM finds out. */
const SMALLEST_BYTES = 64 * 1024 * 1024
const DEFAULT_HOOKS_MS = 10_000
const MAX_HOOKS_MS = 600_000

export type TakeOptions = Pick<SnapshotOptions, 'name' | 'metadata' | 'hooksTimeoutMs' | 'diff' | 'signal'>

/** What can be restored: a snapshot, or one that only lives for a moment. */
export interface Restorable {
  /** Of what it was taken, or of itself. */
  id: string
  /** As the beginning of a sentence names it. */
  title: string
  folder: string
  manifest: Manifest
  /** Where its state is, when that is not in its folder. */
  state?: () => Promise<MachineState>
  /** It is a snapshot, which others can build on. */
  isKept?: boolean
}

/** @throws `bad-request`. */
export function checkedHooksTimeout(value = DEFAULT_HOOKS_MS): number {
  if (Number.isSafeInteger(value) && value >= 0 && value <= MAX_HOOKS_MS) return value
  throw new BandSoxError(
    'bad-request',
    `hooksTimeoutMs: ${String(value)} is not allowed; it must be an integer from 0 to ${MAX_HOOKS_MS}`,
  )
}

/**
 * The caller has the claim on it.
 *
 * @throws `bad-request`, `no-space`, `hook-failed`, `host-unsupported`, what agent and VMM throw, `signal.reason`. The sandbox goes on as
 *   before, and nothing is left.
 */
export async function takeSnapshot(
  host: Host,
  record: SandboxRecord,
  agent: Agent,
  options: TakeOptions,
): Promise<{ record: SnapshotRecord; manifest: Manifest }> {
  const { name, metadata = {}, diff = false } = options
  if (name !== undefined) checkedName(name)
  checkedMetadata(metadata)
  await requireTracking(host, diff, '--diff')
  const base = diff ? requireBase(record) : undefined
  const entry = { name, metadata, purpose: 'snapshot' as const, templateKey: undefined, base }
  return await withUnfinished(host, record, entry, options, async (unfinished) => {
    const taken = await saveInto(host, record, agent, unfinished, options)
    const published = await unfinished.publish(taken)
    if (record.machine?.tracksChanges === true)
      await host.store.describe(record.id, ({ machine }) => ({
        machine: machine && { ...machine, lastState: published.id },
      }))
    host.info(
      `took snapshot ${published.id} of ${record.id}, which stood still for ${Math.round(taken.manifest.pauseMs)} ms`,
    )
    return { record: published, manifest: taken.manifest }
  })
}

/** All but the publishing: the files in the folder then are whole, and on the disk. */
export async function saveInto(
  host: Host,
  record: SandboxRecord,
  agent: Agent,
  unfinished: UnfinishedSnapshot,
  options: Pick<TakeOptions, 'hooksTimeoutMs' | 'diff' | 'signal'>,
): Promise<{ manifest: Manifest; manifestDigest: string; seals: SnapshotRecord['seals'] }> {
  const taken = await save(host, record, agent, unfinished, options)
  const { files, seals } = await recordFiles(host, unfinished.folder, taken.names, options.signal)
  const manifest = await manifestFor(host, record, { ...taken, files, diff: options.diff === true })
  await prepareCopies(host, unfinished.folder, manifest, options.signal)
  const manifestDigest = await writeManifest(unfinished.folder, manifest)
  return { manifest, manifestDigest, seals }
}

/**
 * The same for one moment: what was taken is gone when `use` has ended. It is neither synced nor read again.
 *
 * @throws as {@link takeSnapshot}; what `use` throws.
 */
export async function withMoment<T>(
  host: Host,
  record: SandboxRecord,
  agent: Agent,
  options: Pick<TakeOptions, 'hooksTimeoutMs' | 'signal'>,
  use: (moment: Restorable) => Promise<T>,
): Promise<T> {
  const entry = { name: undefined, metadata: {}, purpose: 'fork' as const, templateKey: undefined, base: undefined }
  return await withUnfinished(host, record, entry, options, async (unfinished) => {
    const taken = await save(host, record, agent, unfinished, options)
    const manifest = await manifestFor(host, record, { ...taken, files: [], diff: false })
    return await use({ id: record.id, title: `sandbox ${record.id}`, folder: unfinished.folder, manifest })
  })
}

/** @throws `busy` when there is a template for the key, or somebody makes one. */
export async function withUnfinished<T>(
  host: Host,
  record: Pick<SandboxRecord, 'id' | 'state'>,
  entry: Omit<NewSnapshot, 'sandbox'>,
  { hooksTimeoutMs, signal }: Pick<TakeOptions, 'hooksTimeoutMs' | 'signal'>,
  work: (unfinished: UnfinishedSnapshot) => Promise<T>,
): Promise<T> {
  checkedHooksTimeout(hooksTimeoutMs)
  requireRestorable(record)
  signal?.throwIfAborted()
  await requireFreeSpace(host.store.root, SMALLEST_BYTES, `a snapshot of sandbox ${record.id}`)
  const unfinished = await host.store.snapshots.begin({ ...entry, sandbox: record.id })
  if (unfinished === undefined)
    throw new BandSoxError('busy', 'there is a template of this kind already, or somebody makes one')
  try {
    return await work(unfinished)
  } catch (error) {
    throw withoutSpace(error, record.id)
  } finally {
    // Of one that was published there is nothing to remove.
    await unfinished.discard().catch((failure: unknown) => {
      host.warn(`cannot remove what there is of an unfinished snapshot of ${record.id}: ${messageOf(failure)}`)
    })
  }
}

interface Taken {
  names: string[]
  pauseMs: number
  isFrozen: boolean
}

async function save(
  host: Host,
  record: SandboxRecord,
  agent: Agent,
  { folder }: UnfinishedSnapshot,
  options: Pick<TakeOptions, 'hooksTimeoutMs' | 'diff' | 'signal'>,
): Promise<Taken> {
  const still = { hooksMs: checkedHooksTimeout(options.hooksTimeoutMs), signal: options.signal }
  const { result, pauseMs, isFrozen } = await atStandstill(host, record, agent, still, async (machine) => {
    // The machine's state first: with it, its VMM has written to its disks what it had kept for later.
    await saveTracked(host, record, machine, folder, options.diff === true ? 'diff' : 'full', options.signal)
    return await saveDisk(host, record, folder, options.signal)
  })
  return { names: [snapshotFiles.memory, snapshotFiles.devices, ...result], pauseMs, isFrozen }
}

async function manifestFor(
  host: Host,
  record: SandboxRecord,
  { pauseMs, isFrozen, files, diff }: Taken & { files: RecordedSnapshotFile[]; diff: boolean },
): Promise<Manifest> {
  const boot = await loadBoot(host.store.root)
  const { vcpu, memoryMib, diskMib, env, labels, metadata, limits, vsock, image, layers, machine, port } = record
  if (machine === undefined || port === null)
    throw new BandSoxError('internal', `sandbox ${record.id} runs, and its record does not say how`)
  return {
    format: 1,
    createdAt: new Date().toISOString(),
    kind: diff ? 'diff' : 'full',
    sandbox: { id: record.id, ...(record.name !== undefined && { name: record.name }) },
    image,
    shape: { vcpu, memoryMib, diskMib, env, labels, metadata, limits, vsock },
    machine,
    boot: { kernel: boot.kernel.vmlinux.sha256, initramfs: boot.initramfs.sha256 },
    port,
    rootFile: rootFileOf(record),
    layers: [...layers],
    ...{ isFrozen, pauseMs: Math.round(pauseMs), files },
  }
}

/** One that its own VMM has stopped, since the host's disk is full, has requests under way that no state holds. */
function requireRestorable({ id, state }: Pick<SandboxRecord, 'id' | 'state'>): void {
  if (state.kind !== 'paused' || state.reason === undefined) return
  throw new BandSoxError('wrong-state', `cannot take a snapshot of sandbox ${id}: it stands still (${state.reason})`, {
    hint: `let it run on first: bandsox vm resume ${id}`,
  })
}

/** Whoever ran out of space says so in another way: the VMM, cp, the store. */
function withoutSpace(error: unknown, id: string): unknown {
  if (!isSystemError(error, 'ENOSPC') && !/no space left on device/i.test(messageOf(error))) return error
  return new BandSoxError('no-space', `no space for a snapshot of sandbox ${id}; it goes on, and nothing was kept`, {
    cause: error,
    hint: 'free some: bandsox system df, bandsox system prune',
  })
}
