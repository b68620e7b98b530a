/** Makes a sandbox of a snapshot, step by step; each step registers its release, so that a failure leaves nothing. */
import path from 'node:path'
import { BandSoxError, type RestoreOptions } from '@bandsox/sdk'
import type { Agent } from '../../guest/agent.js'
import { type SandboxRecord, unstarted } from '../../store/record.js'
import { type Claim, newSandboxId } from '../../store/sandbox-store.js'
import type { SnapshotRecord } from '../../store/snapshot-store.js'
import type { MachineState } from '../../vmm/vmm.js'
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
import { checkFiles, snapshotFiles } from './files.js'
import { type Manifest, readManifest } from './manifest.js'
import { checkedHooksTimeout, type Restorable } from './take.js'

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
 * @throws `snapshot-damaged`, and as {@link restoreFrom}.
 */
export async function restoreSnapshot(
  host: Host,
  snapshot: SnapshotRecord,
  options: RestoreOptions,
  internals: RestoreInternals = {},
): Promise<Restored> {
  const { clock = stageClock() } = internals
  options.signal?.throwIfAborted()
  const { id } = snapshot
  const manifest = await manifestOf(host, snapshot)
  await checkWhole(host, snapshot, manifest, options.signal)
  const folder = host.store.snapshots.folderOf(id)
  const restored = await restoreFrom(host, { id, title: `snapshot ${id}`, folder, manifest }, options, {
    ...internals,
    clock,
  })
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
  { id, title, folder, manifest }: Restorable,
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
      saved: { state: stateIn(folder), machine: manifest.machine, port: manifest.port, hooksMs },
    })
    const running = await host.store.transition(record.id, {
      ...{ state: stateNow('running'), timings, isDurable: true },
      machine: tracksChanges === true ? { ...facts, lastState: id } : facts,
    })
    releases.forget()
    return { record: running, agent, claim }
  } catch (error) {
    for (const failure of await releases.run()) host.warn(`after a failed ${operation}: ${failure}`)
    throw error
  }
}

export async function manifestOf(host: Host, { id, manifestDigest }: SnapshotRecord): Promise<Manifest> {
  if (manifestDigest === undefined) throw new BandSoxError('not-found', `snapshot ${id} is not whole yet`)
  return await readManifest(host.store.snapshots.folderOf(id), id, manifestDigest)
}

/** What was touched since it was last found to be whole is read again. */
async function checkWhole(
  host: Host,
  { id, seals }: SnapshotRecord,
  { files }: Manifest,
  signal: AbortSignal | undefined,
): Promise<void> {
  const of = { folder: host.store.snapshots.folderOf(id), title: `snapshot ${id}` }
  const now = await checkFiles(host, of, files, seals, { signal })
  await host.store.snapshots.used(id, now)
}

export const stateIn = (folder: string): MachineState => ({
  memory: path.join(folder, snapshotFiles.memory),
  devices: path.join(folder, snapshotFiles.devices),
})

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
