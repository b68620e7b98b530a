/**
 * Packs a sandbox's writable layer as a layer of an image. A guest has written its file system, so no process of this host reads it: a
 * machine of its own gets a copy of the disk, mounts it as the sandbox's did, and sends what has changed as a tar.
 */
import { link, stat } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, messageOf, requireAllowed } from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import { createChecksum } from '../guest/checksum.js'
import { copySparse } from '../image/disk.js'
import type { ImageLimits } from '../image/layer/limits.js'
import { type LayerFile, LayerWriter } from '../image/layer-file.js'
import { type ImageOfSandbox, type SandboxRecord, unstarted } from '../store/record.js'
import { newSandboxId } from '../store/sandbox-store.js'
import { requireSameStream } from './copy/report.js'
import { requireTools, runTool } from './copy/tool.js'
import { checkedShape } from './create-options.js'
import { requireFreeSpace, SANDBOX_BYTES } from './free-space.js'
import { type Host, machineFiles } from './host.js'
import type { PackOptions, SandboxLayer } from './local-images.js'
import { Releases } from './releases.js'
import { claimSettled, destroy, stateNow } from './settle.js'
import { linkBootFiles, startMachine } from './start-machine.js'

/** The name of the machine's operation: when its process dies, the next command removes it, as any unfinished creation. */
const OPERATION = 'commit'
/** Most of it for the tables of a large disk, and the names of files that have several. */
const MEMORY_MIB = 256
/** Without a byte from the machine: a broken file system may keep its kernel busy for ever. */
const STALL_MS = 300_000
const STAT_UNIT = 512
const ROOT_DEVICE = '/dev/vda'
const LAYER_DEVICE = '/dev/vdb'

/** The disks of a sandbox, whoever has them: its own, or copies that were frozen while it ran. */
export interface LayerDisks {
  /** For messages. */
  sandboxId: string
  image: Readonly<ImageOfSandbox>
  diskMib: number
  /** Bytes that the copy of the writable disk will take. */
  sizeBytes: number
  /** Puts the image's disk and a copy of the writable one, which is changed, into the folder of a machine; by their usual names. */
  copyTo(directory: string, signal: AbortSignal | undefined): Promise<void>
}

/** @throws as `SandboxLayers.find`. */
export async function findLayer(host: Host, sandbox: string): Promise<SandboxLayer> {
  const found = await host.store.find(sandbox)
  const claim = await claimSettled(host, found.id, OPERATION)
  try {
    checkCommittable(claim.record)
  } finally {
    await claim.release()
  }
  return {
    sandboxId: found.id,
    image: found.image,
    pack: async (limits, options) => await packLayer(host, await stoppedDisks(host, found), limits, options),
  }
}

function checkCommittable({ id, state, importedFrom }: SandboxRecord): void {
  requireAllowed('commit', id, state)
  if (importedFrom === undefined) return
  throw new BandSoxError(
    'bad-request',
    `cannot commit sandbox ${id}: it was imported, and its disk is not a layer over an image but a whole root file system`,
    { hint: `start it, take its files, and import them: bandsox cp ${id}:/ FOLDER; bandsox image import` },
  )
}

/** @throws `storage-unusable` when its disk is not there. */
async function stoppedDisks(host: Host, { id, image, diskMib }: SandboxRecord): Promise<LayerDisks> {
  const source = host.store.directoryOf(id)
  return {
    sandboxId: id,
    image,
    diskMib,
    sizeBytes: await writtenBytes(id, path.join(source, machineFiles.overlay)),
    async copyTo(directory, signal) {
      // Nobody may start it before all of it is copied; after that nothing is wanted of it.
      const claim = await claimSettled(host, id, OPERATION)
      try {
        checkCommittable(claim.record)
        await Promise.all([
          link(path.join(source, machineFiles.root), path.join(directory, machineFiles.root)),
          copySparse(path.join(source, machineFiles.overlay), path.join(directory, machineFiles.overlay), signal),
        ])
      } finally {
        await claim.release()
      }
    },
  }
}

async function writtenBytes(id: string, disk: string): Promise<number> {
  try {
    return (await stat(disk)).blocks * STAT_UNIT
  } catch (error) {
    if (!isSystemError(error, 'ENOENT')) throw error
    throw new BandSoxError('storage-unusable', `cannot commit sandbox ${id}: its disk is not there`, { cause: error })
  }
}

/**
 * @param limits Of the layer.
 * @throws as `SandboxLayer.pack`. Nothing of the machine is left behind, however it ends.
 */
export async function packLayer(
  host: Host,
  disks: LayerDisks,
  limits: ImageLimits,
  options: PackOptions,
): Promise<LayerFile> {
  const { signal, onActivity } = options
  signal?.throwIfAborted()
  await requireFreeSpace(host.store.root, SANDBOX_BYTES + disks.sizeBytes, `a copy of the disk of ${disks.sandboxId}`)
  const releases = new Releases()
  try {
    onActivity(`starting a machine that reads the disk of ${disks.sandboxId}`)
    const shape = checkedShape({ memoryMib: MEMORY_MIB, diskMib: disks.diskMib }, host.defaultLimits)
    const claim = await host.store.insert(helperRecord(disks, shape), { operation: OPERATION })
    const { record } = claim
    releases.add('our claim', () => claim.abandon())
    releases.add('the machine', () => destroy(host, record))
    await host.store.makeDirectory(record.id)
    await Promise.all([disks.copyTo(host.store.directoryOf(record.id), signal), linkBootFiles(host, record.id)])
    const { bootTimeoutMs } = shape
    const { agent } = await startMachine(host, record, { bootTimeoutMs, signal, releases, overlayAsData: true })
    onActivity(`packing what ${disks.sandboxId} has changed`)
    return await receiveLayer(agent, limits, options)
  } catch (error) {
    signal?.throwIfAborted()
    if (!(error instanceof BandSoxError)) throw error
    const { code, hint } = error
    throw new BandSoxError(code, `cannot commit sandbox ${disks.sandboxId}: ${messageOf(error)}`, {
      cause: error,
      ...(hint !== undefined && { hint }),
    })
  } finally {
    for (const failure of await releases.run()) host.warn(`after a commit: ${failure}`)
  }
}

function helperRecord(
  { image }: LayerDisks,
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
