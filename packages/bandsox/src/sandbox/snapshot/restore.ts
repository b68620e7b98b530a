/** Makes a sandbox of a snapshot, step by step; each step registers its release, so that a failure leaves nothing. */
import { BandSoxError, isSystemError, type RestoreOptions } from '@bandsox/sdk'
import type { Agent } from '../../guest/agent.js'
import { type SandboxRecord, unstarted } from '../../store/record.js'
import { type Claim, newSandboxId } from '../../store/sandbox-store.js'
import type { SnapshotRecord } from '../../store/snapshot-store.js'
import { checkedBootTimeout } from '../create-options.js'
import { changedLabels, checkedMetadata, checkedName } from '../description.js'
import { checkedEnv } from '../environment.js'
import { requireFreeSpace, SANDBOX_BYTES } from '../free-space.js'
import { type Host, IMPORTED_ROOT } from '../host.js'
import { checkedLimits, requireKept } from '../limits.js'
import { Releases } from '../releases.js'
import { destroy, stateNow } from '../settle.js'
import { type StageClock, stageClock } from '../stage-clock.js'
import { linkBootFiles, startMachine } from '../start-machine.js'
import { requireCompatible } from './compatible.js'
import { layOutSnapshotDisk, restoreCopyBytes } from './disk.js'
import { stateIn } from './files.js'
import type { Manifest } from './manifest.js'
import { checkedHooksTimeout, type Restorable } from './take.js'
import { requireTracking } from './tracking.js'
import { checkSnapshotFiles, manifestOf, wholeStateOf } from './whole.js'

/** What is not asked of who restores, but of who starts a sandbox by restoring. */
export interface RestoreInternals {
  /** What the sandbox is, in place of what the snapshot says. */
  as?: Partial<Omit<SandboxRecord, 'operation'>>
  clock?: StageClock
  /** Default `restore`. */
  operation?: string
}

export interface Restored {
  /** Of a running sandbox. */
  record: SandboxRecord
  /** The one that answered. */
  agent: Agent
}

/**
 * @throws `snapshot-damaged`, `not-found` when it is removed meanwhile, and as {@link restoreFrom}.
 */
export async function restoreSnapshot(
  host: Host,
  snapshot: SnapshotRecord,
  options: RestoreOptions,
  internals: RestoreInternals = {},
): Promise<Restored> {
  const { clock = stageClock() } = internals
  options.signal?.throwIfAborted()
  await requireTracking(host, options.tracksChanges, '--track-changes')
  try {
    return await restoreNow(host, snapshot, options, { ...internals, clock })
  } catch (error) {
    const now = await host.store.snapshots.read(snapshot.id)
    if (now === undefined) throw isOfFiles(error) ? removed(snapshot.id, error) : error
    if (now.manifestDigest === snapshot.manifestDigest) throw error
    return await restoreSnapshot(host, now, options, internals) // it was merged meanwhile, and its files were moved
  }
}

/** A program that was given them may have met it first. */
const CODES_OF_FILES: readonly string[] = ['snapshot-damaged', 'command-failed']

const isOfFiles = (error: unknown): boolean =>
  isSystemError(error, 'ENOENT') || (error instanceof BandSoxError && CODES_OF_FILES.includes(error.code))

const removed = (id: string, cause: unknown): BandSoxError =>
  new BandSoxError('not-found', `cannot restore snapshot ${id}: it was removed meanwhile`, {
    ...{ cause, hint: 'see what there is: bandsox snapshot list' },
  })

async function restoreNow(
  host: Host,
  snapshot: SnapshotRecord,
  options: RestoreOptions,
  internals: RestoreInternals,
): Promise<Restored> {
  const { id } = snapshot
  const manifest = await manifestOf(host, snapshot)
  await checkSnapshotFiles(host, snapshot, manifest, options.signal)
  const folder = host.store.snapshots.folderOf(id)
  const state = () => wholeStateOf(host, snapshot, manifest, options.signal)
  const moment = { id, title: `snapshot ${id}`, folder, manifest, state, isKept: true }
  const restored = await restoreFrom(host, moment, options, internals)
  host.info(`restored ${id} as ${restored.record.id}`)
  return restored
}

/** @throws as {@link restoreClaimed}. */
export async function restoreFrom(
  host: Host,
  moment: Restorable,
  options: RestoreOptions,
  internals: RestoreInternals = {},
): Promise<Restored> {
  const { claim, record, agent } = await restoreClaimed(host, moment, options, internals)
  await claim.release()
  return { record: { ...record, operation: undefined }, agent }
}

/**
 * The same, with the operation still going on.
 *
 * @throws `bad-request`, `name-taken`, `no-space`, `snapshot-incompatible`, what {@link startMachine} throws, or `options.signal`'s reason.
 *   Nothing is left behind.
 */
export async function restoreClaimed(
  host: Host,
  { id, title, folder, manifest, state = async () => stateIn(folder), isKept }: Restorable,
  options: RestoreOptions,
  { as = {}, clock = stageClock(), operation = 'restore' }: RestoreInternals = {},
): Promise<Restored & { claim: Claim }> {
  const { signal, tracksChanges } = options
  const bootTimeoutMs = checkedBootTimeout(options.bootTimeoutMs)
  const hooksMs = checkedHooksTimeout(options.hooksTimeoutMs)
  const wanted = { ...newRecord(id, manifest, options), ...as }
  await requireKept(wanted.limits)
  await requireCompatible(host, wanted, manifest, title)
  const copied = await restoreCopyBytes(host, folder, manifest)
  await requireFreeSpace(host.store.root, SANDBOX_BYTES + copied, `a sandbox of ${title}`)
  const { machine, port, shape } = manifest
  const saved = { state: await state(), machine, port, hooksMs, limits: shape.limits, isUntold: !manifest.isFrozen }
  clock.mark('check')
  const releases = new Releases()
  try {
    const claim = await host.store.insert(wanted, { unique: options.unique === true, operation })
    const { record } = claim
    releases.add('our claim', () => claim.abandon())
    releases.add('the sandbox', () => destroy(host, record))
    await host.store.makeDirectory(record.id)
    const directory = host.store.directoryOf(record.id)
    const [layers] = await Promise.all([
      layOutSnapshotDisk(host, folder, manifest, directory),
      linkBootFiles(host, record.id),
    ])
    const withDisk = layers.length === 0 ? record : await host.store.describe(record.id, () => ({ layers }))
    clock.mark('disk')
    const { agent, facts, timings } = await startMachine(host, withDisk, {
      ...{ bootTimeoutMs, signal, releases, clock, tracksChanges },
      saved,
    })
    const running = await host.store.transition(record.id, {
      ...{ state: stateNow('running'), timings, isDurable: true },
      machine: tracksChanges === true && isKept === true ? { ...facts, lastState: id } : facts,
    })
    releases.forget()
    return { record: running, agent, claim }
  } catch (error) {
    for (const failure of await releases.run()) host.warn(`after a failed ${operation}: ${failure}`)
    throw error
  }
}

function newRecord(
  restoredFrom: string,
  { image, shape, rootFile }: Manifest,
  options: RestoreOptions,
): Omit<SandboxRecord, 'operation'> {
  const { name, labels = {}, metadata, env = {}, limits } = options
  return {
    id: newSandboxId(),
    name: name === undefined ? undefined : checkedName(name),
    ...{ image, vcpu: shape.vcpu, memoryMib: shape.memoryMib, diskMib: shape.diskMib, vsock: shape.vsock },
    env: checkedEnv({ ...shape.env, ...env }),
    labels: changedLabels(shape.labels, labels),
    metadata: metadata === undefined ? shape.metadata : checkedMetadata(metadata),
    limits: limits === undefined ? shape.limits : checkedLimits(limits, shape.limits),
    ...unstarted,
    hasOwnRoot: rootFile === IMPORTED_ROOT,
    restoredFrom,
    state: stateNow('creating'),
    createdAt: new Date().toISOString(),
  }
}
