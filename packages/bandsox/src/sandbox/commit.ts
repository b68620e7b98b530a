/**
 * Packs a writable disk as a layer of an image. A guest has written its file system, so no process of this host reads it: a
 * machine of its own gets the disk, mounts it as the sandbox's did, and sends what has changed as a tar.
 */
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import { createChecksum } from '../guest/checksum.js'
import type { ImageLimits } from '../image/layer/limits.js'
import { type LayerFile, LayerWriter } from '../image/layer-file.js'
import { type SandboxRecord, unstarted } from '../store/record.js'
import { newSandboxId } from '../store/sandbox-store.js'
import { type DiskSource, findDisk, OPERATION } from './commit-source.js'
import { requireSameStream } from './copy/report.js'
import { requireTools, runTool } from './copy/tool.js'
import { checkedShape } from './create-options.js'
import { requireFreeSpace, SANDBOX_BYTES } from './free-space.js'
import type { Host } from './host.js'
import type { PackOptions, SandboxLayer } from './local-images.js'
import { Releases } from './releases.js'
import { destroy, stateNow } from './settle.js'
import { linkBootFiles, startMachine } from './start-machine.js'

/** Most of it for the tables of a large disk, and the names of files that have several. */
const MEMORY_MIB = 256
/** Without a byte from the machine: a broken file system may keep its kernel busy for ever. */
const STALL_MS = 300_000
const ROOT_DEVICE = '/dev/vda'
const LAYER_DEVICE = '/dev/vdb'

/** @throws as `SandboxLayers.find`. */
export async function findLayer(host: Host, name: string): Promise<SandboxLayer> {
  const disk = await findDisk(host, name)
  return {
    title: disk.title,
    image: disk.image,
    pack: async (limits, options) => await packLayer(host, disk, limits, options),
  }
}

/**
 * @param limits Of the layer.
 * @throws as `SandboxLayer.pack`. Nothing of the machine is left behind, however it ends.
 */
async function packLayer(host: Host, disk: DiskSource, limits: ImageLimits, options: PackOptions): Promise<LayerFile> {
  const { signal, onActivity } = options
  signal?.throwIfAborted()
  const { title } = disk
  await requireFreeSpace(host.store.root, SANDBOX_BYTES + (await disk.copiedBytes()), `a copy of the disk of ${title}`)
  const releases = new Releases()
  try {
    const shape = checkedShape({ memoryMib: MEMORY_MIB, diskMib: disk.diskMib }, host.defaultLimits)
    // Should our process die, the next command removes the machine with its copy, as any unfinished creation.
    const claim = await host.store.insert(helperRecord(disk, shape), { operation: OPERATION })
    const { record } = claim
    releases.add('our claim', () => claim.abandon())
    releases.add('the machine', () => destroy(host, record))
    await host.store.makeDirectory(record.id)
    onActivity(`taking the disk of ${title}`)
    const layers = await disk.layOut(host.store.directoryOf(record.id), options)
    await linkBootFiles(host, record.id)
    const withDisk = await host.store.describe(record.id, () => ({ layers }))
    onActivity('starting a machine that reads it')
    const { bootTimeoutMs } = shape
    const { agent } = await startMachine(host, withDisk, { bootTimeoutMs, signal, releases, overlayAsData: true })
    onActivity(`packing what ${title} has changed`)
    return await receiveLayer(agent, limits, options)
  } catch (error) {
    signal?.throwIfAborted()
    throw explained(error, title)
  } finally {
    for (const failure of await releases.run()) host.warn(`after a commit: ${failure}`)
  }
}

function explained(error: unknown, title: string): unknown {
  const refusal = `cannot commit ${title}`
  const message = messageOf(error)
  if (isSystemError(error, 'ENOSPC') || /no space left on device/i.test(message))
    return new BandSoxError('no-space', `${refusal}: no space for a copy of its disk`, {
      cause: error,
      hint: 'free some: bandsox system df, bandsox system prune',
    })
  if (!(error instanceof BandSoxError) || message.startsWith(refusal)) return error
  const { code, hint } = error
  return new BandSoxError(code, `${refusal}: ${message}`, { cause: error, ...(hint !== undefined && { hint }) })
}

function helperRecord(
  { image }: DiskSource,
  { bootTimeoutMs: _, unique: __, ...shape }: ReturnType<typeof checkedShape>,
): Omit<SandboxRecord, 'operation'> {
  return {
    id: newSandboxId(),
    ...shape,
    ...unstarted,
    image,
    state: stateNow('creating'),
    createdAt: new Date().toISOString(),
  }
}

async function receiveLayer(
  agent: Agent,
  limits: ImageLimits,
  { file, onWarning, signal }: PackOptions,
): Promise<LayerFile> {
  await requireTools(agent, signal)
  const words = ['layer', ...(limits.allowDevices ? ['--devices'] : []), '--image', ROOT_DEVICE, LAYER_DEVICE]
  const checksum = await createChecksum('xxh64')
  const writer = new LayerWriter(file, limits)
  const stall = stallTimer()
  let streamBytes = 0
  try {
    const { report } = await runTool(agent, words, {
      onOutput: async (data) => {
        stall.refresh()
        checksum.update(data)
        streamBytes += data.length
        await writer.write(data)
      },
      signal: signal === undefined ? stall.signal : AbortSignal.any([signal, stall.signal]),
    })
    requireSameStream(report, { streamBytes, xxh64: checksum.digest() }, 'pack its layer')
    for (const { path: skipped, reason } of report.skipped) onWarning(`${skipped} is left out: ${reason}`)
    const unnamed = report.skippedCount - report.skipped.length
    if (unnamed > 0) onWarning(`${unnamed} more files are left out`)
    return await writer.finish()
  } finally {
    stall.end()
    await writer.discard()
  }
}

function stallTimer(): { signal: AbortSignal; refresh: () => void; end: () => void } {
  const stalled = new AbortController()
  const timer = setTimeout(() => {
    stalled.abort(new BandSoxError('timeout', `nothing has come from the machine that reads it for ${STALL_MS} ms`))
  }, STALL_MS)
  return { signal: stalled.signal, refresh: () => void timer.refresh(), end: () => clearTimeout(timer) }
}
