/** Makes and starts a sandbox: from a pool, from a template, or by booting it; each step registers its release, so that a failure leaves nothing. */
import { link } from 'node:fs/promises'
import path from 'node:path'
import type { CreateOptions, PullOptions } from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import { copyEmptyDisk, emptyDisk } from '../image/disk.js'
import type { ImageRecord } from '../image/image-record.js'
import { type ImageOfSandbox, type SandboxRecord, unstarted } from '../store/record.js'
import { type Claim, newSandboxId } from '../store/sandbox-store.js'
import { checkedShape, type Shape } from './create-options.js'
import { requireFreeSpace, SANDBOX_BYTES } from './free-space.js'
import { type Host, machineFiles } from './host.js'
import { requireKept } from './limits.js'
import { storageFolders } from './prepare.js'
import { Releases } from './releases.js'
import { destroy, stateNow } from './settle.js'
import { requireTracking } from './snapshot/tracking.js'
import { type StageClock, stageClock } from './stage-clock.js'
import { linkBootFiles, startMachine } from './start-machine.js'

/** What is to be made, and is checked already. */
export interface NewSandbox {
  record: Omit<SandboxRecord, 'operation'>
  unique: boolean
  bootTimeoutMs: number
}

/** Other ways to a sandbox than to boot one. */
export interface QuickStart {
  /** @returns undefined where there is none. */
  start: (
    wanted: NewSandbox,
    options: { clock: StageClock; signal: AbortSignal | undefined },
  ) => Promise<{ record: SandboxRecord; agent: Agent } | undefined>
  /** Called when one had to be booted, and runs. */
  booted: (wanted: NewSandbox) => Promise<void>
}

/**
 * @param quick Absent: it is booted.
 * @returns The record of a running sandbox, and the agent that answered.
 * @throws `bad-request`, `name-taken`, `no-space`, what fetching the image throws, what {@link startMachine} throws, or `options.signal`'s
 *   reason. Nothing is left behind.
 */
export async function createSandbox(
  host: Host,
  reference: string,
  options: CreateOptions,
  quick?: QuickStart,
): Promise<{ record: SandboxRecord; agent: Agent }> {
  const { signal, tracksChanges } = options
  const shape = checkedShape(options, host.defaultLimits)
  signal?.throwIfAborted()
  await requireTracking(host, tracksChanges, '--track-changes')
  await requireKept(shape.limits)
  await requireFreeSpace(host.store.root, SANDBOX_BYTES, 'a sandbox')
  const clock = stageClock()
  // Until the VM's own directory holds the image's disk, nobody may remove it.
  const letImageGo = await host.images.hold(signal)
  try {
    const image = await host.images.obtain(reference, imageOptions(options))
    clock.mark('image')
    const { unique, bootTimeoutMs } = shape
    const wanted: NewSandbox = { record: newRecord(reference, image.record, shape), unique, bootTimeoutMs }
    const started = await quick?.start(wanted, { clock, signal })
    const made = started ?? (await boot(host, wanted, { clock, signal, tracksChanges, diskThere: letImageGo }))
    await letImageGo()
    if (image.changed) await host.images.makeRoom(image.record.id, options.onImageEvent)
    if (started === undefined) await quick?.booted(wanted)
    host.info(`created ${made.record.id} of ${reference}`)
    return made
  } finally {
    await letImageGo()
  }
}

/** What `create` would make of it, with nothing made yet. The image is fetched, should it be missing. */
export async function createSandboxRecord(
  host: Host,
  reference: string,
  options: CreateOptions,
  signal: AbortSignal | undefined = options.signal,
): Promise<NewSandbox> {
  const shape = checkedShape(options, host.defaultLimits)
  const letImageGo = await host.images.hold(signal)
  try {
    const { record } = await host.images.obtain(
      reference,
      imageOptions({ ...options, ...(signal !== undefined && { signal }) }),
    )
    return { record: newRecord(reference, record, shape), unique: shape.unique, bootTimeoutMs: shape.bootTimeoutMs }
  } finally {
    await letImageGo()
  }
}

interface BootOptions {
  clock?: StageClock
  signal: AbortSignal | undefined
  tracksChanges?: boolean | undefined
  /** Default `create`. */
  operation?: string
  /** Called when its directory holds the image's disk. */
  diskThere?: () => Promise<void>
}

async function boot(
  host: Host,
  wanted: NewSandbox,
  options: BootOptions,
): Promise<{ record: SandboxRecord; agent: Agent }> {
  const { record, agent, claim } = await bootClaimed(host, wanted, options)
  await claim.release()
  return { record: { ...record, operation: undefined }, agent }
}

/** The image is there, and held. The operation still goes on when it returns. */
export async function bootClaimed(
  host: Host,
  { record: wanted, unique, bootTimeoutMs }: NewSandbox,
  { clock = stageClock(), signal, tracksChanges, operation = 'create', diskThere }: BootOptions,
): Promise<{ record: SandboxRecord; agent: Agent; claim: Claim }> {
  const releases = new Releases()
  try {
    const claim = await host.store.insert(wanted, { unique, operation })
    const { record } = claim
    releases.add('our claim', () => claim.abandon()) // of what could not be removed, the next command tries it again
    releases.add('the sandbox', () => destroy(host, record))
    await host.store.makeDirectory(record.id)
    await Promise.all([layOutDisks(host, record, signal), linkBootFiles(host, record.id)])
    await diskThere?.()
    const { agent, facts, timings } = await startMachine(host, record, {
      ...{ bootTimeoutMs, signal, releases, clock, tracksChanges },
    })
    const running = await host.store.transition(record.id, {
      ...{ state: stateNow('running'), machine: facts, timings, isDurable: true },
    })
    releases.forget()
    return { record: running, agent, claim }
  } catch (error) {
    for (const failure of await releases.run()) host.warn(`after a failed ${operation}: ${failure}`)
    throw error
  }
}

const imageOptions = ({ pull, platform, credentials, onImageEvent, signal }: CreateOptions): PullOptions => ({
  ...(pull !== undefined && { pull }),
  ...(platform !== undefined && { platform }),
  ...(credentials !== undefined && { credentials }),
  ...(onImageEvent !== undefined && { onEvent: onImageEvent }),
  ...(signal !== undefined && { signal }),
})

function newRecord(reference: string, image: ImageRecord, shape: Shape): Omit<SandboxRecord, 'operation'> {
  const { bootTimeoutMs: _, unique: __, ...kept } = shape
  return {
    id: newSandboxId(),
    ...kept,
    ...unstarted,
    image: imageOf(reference, image),
    state: stateNow('creating'),
    createdAt: new Date().toISOString(),
  }
}

/** What of an image its sandbox keeps: the image may be removed meanwhile, by force. */
function imageOf(reference: string, image: ImageRecord): ImageOfSandbox {
  const { env, user, workingDir, entrypoint, cmd, stopSignal } = image.config
  return { reference, digest: image.id, config: { env, user, workingDir, entrypoint, cmd, stopSignal } }
}

/** A hard link to the image's, and a sparse copy of an empty one: nothing of the image is copied. */
async function layOutDisks(host: Host, record: SandboxRecord, signal: AbortSignal | undefined): Promise<void> {
  const { root } = host.store
  const directory = host.store.directoryOf(record.id)
  const image = await host.images.diskOf(record.image.digest)
  const disk = await emptyDisk({ cacheDirectory: storageFolders(root).disks, sizeMib: record.diskMib, signal })
  await Promise.all([
    link(image, path.join(directory, machineFiles.root)),
    copyEmptyDisk(disk.path, path.join(directory, machineFiles.overlay), signal),
  ])
}
