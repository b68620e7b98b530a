/** Makes and starts a sandbox, step by step; each step registers its release, so that a failure leaves nothing. */
import { link } from 'node:fs/promises'
import path from 'node:path'
import type { CreateOptions, PullOptions } from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import { copyEmptyDisk, emptyDisk } from '../image/disk.js'
import type { ImageRecord } from '../image/image-record.js'
import type { ImageOfSandbox, SandboxRecord } from '../store/record.js'
import { newSandboxId } from '../store/sandbox-store.js'
import { checkedShape, type Shape } from './create-options.js'
import { requireFreeSpace, SANDBOX_BYTES } from './free-space.js'
import { type Host, machineFiles } from './host.js'
import { requireKept } from './limits.js'
import { storageFolders } from './prepare.js'
import { Releases } from './releases.js'
import { destroy, stateNow } from './settle.js'
import { stageClock } from './stage-clock.js'
import { linkBootFiles, startMachine } from './start-machine.js'

/**
 * @returns The record of a running sandbox, and the agent that answered.
 * @throws `bad-request`, `name-taken`, `no-space`, what fetching the image throws, what {@link startMachine} throws, or `options.signal`'s
 *   reason. Nothing is left behind.
 */
export async function createSandbox(
  host: Host,
  reference: string,
  options: CreateOptions,
): Promise<{ record: SandboxRecord; agent: Agent }> {
  const { signal } = options
  const shape = checkedShape(options, host.defaultLimits)
  signal?.throwIfAborted()
  await requireKept(shape.limits)
  await requireFreeSpace(host.store.root, SANDBOX_BYTES, 'a sandbox')
  const releases = new Releases()
  const clock = stageClock()
  try {
    // Until the VM's own directory holds the image's disk, nobody may remove it.
    const letImageGo = await host.images.hold(signal)
    releases.add('our hold on the image', letImageGo)
    const image = await host.images.obtain(reference, imageOptions(options))
    clock.mark('image')
    const claim = await host.store.insert(newRecord(reference, image.record, shape), { unique: shape.unique })
    const { record } = claim
    releases.add('our claim', () => claim.abandon()) // of what could not be removed, the next command tries it again
    releases.add('the sandbox', () => destroy(host, record))
    await host.store.makeDirectory(record.id)
    await Promise.all([layOutDisks(host, record, signal), linkBootFiles(host, record.id)])
    await letImageGo()
    if (image.changed) await host.images.makeRoom(image.record.id, options.onImageEvent)

    const { agent, facts, timings } = await startMachine(host, record, {
      ...{ bootTimeoutMs: shape.bootTimeoutMs, signal, releases, clock },
    })
    const running = await host.store.transition(record.id, {
      ...{ state: stateNow('running'), machine: facts, timings, isDurable: true },
    })
    await claim.release()
    releases.forget()
    host.info(`created ${record.id} of ${reference}`)
    return { record: { ...running, operation: undefined }, agent }
  } catch (error) {
    for (const failure of await releases.run()) host.warn(`after a failed create: ${failure}`)
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
    image: imageOf(reference, image),
    importedFrom: undefined,
    cid: null,
    port: null,
    state: stateNow('creating'),
    createdAt: new Date().toISOString(),
    machine: undefined,
    timings: {},
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
