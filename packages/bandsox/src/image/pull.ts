/** Fetches an image from a source and makes its disk: what is there already is neither fetched nor made again. */
import { join } from 'node:path'
import { BandSoxError, type ImageEvent } from '@bandsox/sdk'
import pLimit from 'p-limit'
import { beginFetching } from './activity.js'
import { type DiskLayer, writeDisk } from './disk-writer.js'
import type { ImageRecord, ReferenceRecord } from './image-record.js'
import { diskKey, type ImageStore } from './image-store.js'
import { decompress } from './layer/decompress.js'
import { ImageBudget, indexLayer } from './layer/layer-index.js'
import type { ImageLimits } from './layer/limits.js'
import {
  type Configuration,
  choosePlatform,
  isPlatform,
  type Manifest,
  type Platform,
  parseConfiguration,
  parseDocument,
  parsePlatform,
  platformText,
} from './manifest.js'
import { type Descriptor, type Document, type ImageSource, MAX_DOCUMENT_BYTES } from './source/source.js'

/** Layers that are fetched and read at once, as Docker does. */
const MAX_LAYERS_AT_ONCE = 3
const REPORT_INTERVAL_MS = 100
const MAX_WARNINGS = 20

export interface PullImageOptions {
  store: ImageStore
  source: ImageSource
  /** For events and messages; kept as a name of the image unless `keepReference` is false. */
  reference: string
  keepReference?: boolean
  origin: ReferenceRecord['origin']
  platform: Platform
  limits: ImageLimits
  onEvent?: ((event: ImageEvent) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * @returns The image's record; `changed` is false when reference, image and disk were there.
 * @throws `image-not-found`, `platform-not-found`, `image-invalid`, `image-too-large`, `layer-invalid`, `layer-hostile`,
 *   `digest-mismatch`, `registry-…`, `host-missing`, `command-failed`, or `signal.reason`. What was fetched whole is kept for the
 *   next attempt, and what was fetched in part; nothing of it is used before all is verified.
 */
export async function pullImage(options: PullImageOptions): Promise<{ image: ImageRecord; changed: boolean }> {
  const { store, source, reference, onEvent, signal } = options
  const release = await beginFetching(join(store.root, 'locks'), signal)
  try {
    onEvent?.({ kind: 'resolving', reference })
    const unmoved = await findUnmoved(options)
    if (unmoved !== undefined) return { image: unmoved, changed: false }
    const root = await source.root(signal)
    const { manifest, document } = await chooseManifest(root, options)
    const configuration = await fetchConfiguration(manifest, options)
    checkImage(manifest, configuration, options)
    const layers = manifest.layers.map(({ digest, size }) => ({ digest, sizeBytes: size }))
    onEvent?.({ kind: 'resolved', reference, digest: document.digest, layers })

    const before = await store.readReference(reference)
    if (before !== undefined && before.root !== root.digest) {
      onEvent?.({ kind: 'moved', reference, from: before.root, to: root.digest })
    }
    const known = await store.readImage(manifest.config.digest)
    const key = diskKey(configuration.diffIds)
    const unlock = await store.lockDisk(key, { onWait: waiting('disk', onEvent), signal })
    let made: boolean
    try {
      made = await makeDiskUnlessThere(key, manifest, configuration, options)
      await store.blobs.writeDocument(document.digest, document.bytes)
      const image = imageRecord(manifest, document, configuration)
      // One whose disk was of an earlier format gets this one.
      if (known?.manifest.digest !== document.digest || known.disk !== key) await store.writeImage(image)
      store.markUsed(image.id)
      const named = { version: 1, reference, image: image.id, root: root.digest, origin: options.origin } as const
      const isNamed =
        options.keepReference === false ||
        (before?.root === named.root && before.image === named.image && before.origin === named.origin)
      if (!isNamed) await store.writeReference(named)
      return { image, changed: made || known === undefined || !isNamed }
    } finally {
      await unlock()
    }
  } finally {
    await release()
  }
}

/** The image when the reference still means what it meant, and all of it is there. */
async function findUnmoved({
  store,
  source,
  reference,
  platform,
  signal,
}: PullImageOptions): Promise<ImageRecord | undefined> {
  const before = await store.readReference(reference)
  if (before === undefined || (await source.digest?.(signal)) !== before.root) return undefined
  const image = await store.readImage(before.image)
  if (image === undefined || !isPlatform(parsePlatform(image.platform), platform)) return undefined
  if (image.disk !== diskKey(image.diffIds) || (await store.findDisk(image.disk)) === undefined) return undefined
  store.markUsed(image.id)
  return image
}

async function chooseManifest(
  root: Document,
  { source, platform, reference, signal }: PullImageOptions,
): Promise<{ manifest: Manifest; document: Document }> {
  const parsed = parseDocument(root)
  if (parsed.kind === 'manifest') return { manifest: parsed.manifest, document: root }
  const document = await source.manifest(choosePlatform(parsed.index, platform, reference), signal)
  const chosen = parseDocument(document)
  if (chosen.kind === 'manifest') return { manifest: chosen.manifest, document }
  throw new BandSoxError('image-invalid', `${reference} has an index in its index (${document.digest})`)
}

async function fetchConfiguration(
  { config }: Manifest,
  { store, source, signal }: PullImageOptions,
): Promise<Configuration> {
  if (config.size > MAX_DOCUMENT_BYTES) {
    throw new BandSoxError('image-invalid', `its configuration has ${config.size} bytes, over ${MAX_DOCUMENT_BYTES}`)
  }
  await store.blobs.fetch(config, source, { signal }).done
  const bytes = await store.blobs.readDocument(config.digest)
  return parseConfiguration({ bytes, mediaType: config.mediaType, digest: config.digest })
}

/** Before anything large is fetched. */
function checkImage(
  { layers }: Manifest,
  { diffIds, platform }: Configuration,
  { limits, reference, platform: wanted }: PullImageOptions,
): void {
  if (layers.length !== diffIds.length) {
    const counts = `${layers.length} layers in its manifest, and ${diffIds.length} in its configuration`
    throw new BandSoxError('image-invalid', `${reference} has ${counts}`)
  }
  if (layers.length > limits.maxLayers) {
    const counts = `${layers.length} layers, over ${limits.maxLayers}`
    throw new BandSoxError('image-too-large', `${reference} has ${counts} (images.limits.maxLayers)`)
  }
  const packed = layers.reduce((sum, { size }) => sum + size, 0)
  if (packed > limits.maxBytes) {
    const counts = `${packed} bytes even as it is packed, over ${limits.maxBytes}`
    throw new BandSoxError('image-too-large', `${reference} has ${counts} (images.limits.maxBytes)`)
  }
  if (!isPlatform(parsePlatform(platform), wanted)) {
    throw new BandSoxError('platform-not-found', `${reference} is for ${platform}, and not for ${platformText(wanted)}`)
  }
}

/** @returns Whether it had to be made. */
async function makeDiskUnlessThere(
  key: string,
  { layers }: Manifest,
  { diffIds }: Configuration,
  options: PullImageOptions,
): Promise<boolean> {
  const { store, onEvent, signal } = options
  if ((await store.findDisk(key)) !== undefined) {
    for (const { digest, size } of layers) {
      onEvent?.({ kind: 'layer', digest, phase: 'present', bytes: size, totalBytes: size })
    }
    return false
  }
  const cancel = new AbortController()
  const either = signal === undefined ? cancel.signal : AbortSignal.any([signal, cancel.signal])
  const reading = readLayers(layers, diffIds, { ...options, signal: either })
  // The first failure ends all; else it would be seen only when the disk has come that far.
  for (const { settled } of reading) settled.catch((error: unknown) => cancel.abort(error))
  try {
    await store.makeDisk(key, (output) =>
      writeDisk({
        layers: reading,
        output,
        onProgress: paced((bytes) => onEvent?.({ kind: 'disk', phase: 'writing', bytes })),
        signal: either,
      }),
    )
  } catch (error) {
    cancel.abort(error)
    // Nothing may go on fetching when the caller has heard of the failure.
    await Promise.allSettled(reading.map(({ settled }) => settled))
    throw signal?.aborted ? signal.reason : cancel.signal.reason
  }
  onEvent?.({ kind: 'disk', phase: 'ready', bytes: (await store.findDisk(key))?.sizeBytes ?? 0 })
  return true
}

/** Begins with the highest, which the disk needs first. */
function readLayers(
  layers: readonly Descriptor[],
  diffIds: readonly string[],
  { store, source, limits, onEvent, signal }: PullImageOptions,
): (DiskLayer & { settled: Promise<unknown> })[] {
  const budget = new ImageBudget(limits)
  const inTurn = pLimit(MAX_LAYERS_AT_ONCE)
  const warn = boundedWarnings(onEvent)
  return [...layers.entries()].reverse().map(([index, descriptor]) => {
    const { digest, size } = descriptor
    const report = (phase: 'downloading' | 'ready', bytes: number) =>
      onEvent?.({ kind: 'layer', digest, phase, bytes, totalBytes: size })
    const onProgress = paced((bytes) => report('downloading', bytes))
    const onWait = waiting(digest, onEvent)
    let fetched: Promise<void> = Promise.resolve()
    const tree = inTurn(async () => {
      signal?.throwIfAborted()
      const blob = store.blobs.fetch(descriptor, source, { onProgress, onWait, signal })
      fetched = blob.done
      const found = await indexLayer(blob.read(), { digest, diffId: diffIds[index] ?? '', budget, warn, signal })
      report('ready', size)
      return found
    })
    return {
      tree,
      open: () => decompress(store.blobs.read(digest), signal),
      settled: tree.finally(() => fetched.catch(() => undefined)), // `tree` fails with the fetch
    }
  })
}

/** A layer may come twice in one image: then this process waits for itself, which is nobody's concern. */
const waiting =
  (what: string, onEvent: PullImageOptions['onEvent']) =>
  ({ pid }: { pid: number }) => {
    if (pid !== process.pid) onEvent?.({ kind: 'waiting', what, pid })
  }

function imageRecord(
  manifest: Manifest,
  document: Document,
  { platform, createdAt, diffIds, config }: Configuration,
): ImageRecord {
  return {
    version: 1,
    id: manifest.config.digest,
    manifest: { mediaType: document.mediaType, digest: document.digest, size: document.bytes.length },
    configuration: manifest.config,
    platform,
    config,
    layers: manifest.layers,
    diffIds,
    disk: diskKey(diffIds),
    ...(createdAt !== undefined && { createdAt }),
    pulledAt: new Date().toISOString(),
  }
}

/** Lets a report through at most every 100 ms: nobody reads faster. */
function paced(report: (bytes: number) => void): (bytes: number) => void {
  let nextAt = 0
  return (bytes) => {
    const now = performance.now()
    if (now < nextAt) return
    nextAt = now + REPORT_INTERVAL_MS
    report(bytes)
  }
}

/** A hostile layer may be odd a million times. */
function boundedWarnings(onEvent: PullImageOptions['onEvent']): (message: string) => void {
  let left = MAX_WARNINGS
  return (message) => {
    if (left-- > 0) onEvent?.({ kind: 'warning', message })
  }
}
