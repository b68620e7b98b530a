/** Images that lie in memory: as a set of files, and as a source to pull from that can fail in all ways. */
import { Readable } from 'node:stream'
import { BandSoxError } from '@bandsox/sdk'
import type { TarFiles } from '../source/files.js'
import type { Descriptor, Document, ImageSource } from '../source/source.js'
import { digestOf } from './image-corpus.js'

const MANIFEST = 'application/vnd.oci.image.manifest.v1+json'
const CONFIG = 'application/vnd.oci.image.config.v1+json'
const LAYER = 'application/vnd.oci.image.layer.v1.tar'

export const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
export const described = (bytes: Buffer, mediaType: string): Descriptor => ({
  mediaType,
  digest: digestOf(bytes),
  size: bytes.length,
})
export const documentOf = (bytes: Buffer, mediaType = MANIFEST): Document => ({
  bytes,
  mediaType,
  digest: digestOf(bytes),
})

export interface MemoryImage {
  manifest: Buffer
  configuration: Buffer
  /** All of them by digest, with the configuration. */
  blobs: Map<string, Buffer>
}

/**
 * An image that is right, unless it is told otherwise.
 *
 * @param layers Blobs, the lowest first.
 */
export function memoryImage(
  layers: readonly Buffer[],
  over: { diffIds?: string[]; descriptors?: Partial<Descriptor>[]; config?: Record<string, unknown> } = {},
): MemoryImage {
  const configuration = json({
    os: 'linux',
    architecture: 'amd64',
    config: { Env: ['A=b'], Cmd: ['sh'] },
    rootfs: { type: 'layers', diff_ids: over.diffIds ?? layers.map(digestOf) },
    ...over.config,
  })
  const manifest = json({
    schemaVersion: 2,
    mediaType: MANIFEST,
    config: described(configuration, CONFIG),
    layers: layers.map((layer, index) => ({ ...described(layer, LAYER), ...over.descriptors?.[index] })),
  })
  return { manifest, configuration, blobs: new Map([configuration, ...layers].map((blob) => [digestOf(blob), blob])) }
}

export interface MemorySourceOptions {
  /** Opens a blob otherwise than whole: breaks, stalls, lies. undefined: as it is. */
  open?: (
    descriptor: Descriptor,
    offset: number,
    signal?: AbortSignal,
  ) => { stream: Readable; startsAt: number } | undefined
  /** What the reference means; default: the image's manifest. */
  root?: () => Document
  /** Manifests of an index. */
  manifests?: Buffer[]
}

export class MemorySource implements ImageSource {
  /** Digests of the blobs that were asked for, and from where. */
  readonly opened: { digest: string; offset: number }[] = []
  readonly #image: MemoryImage
  readonly #options: MemorySourceOptions

  constructor(image: MemoryImage, options: MemorySourceOptions = {}) {
    this.#image = image
    this.#options = options
  }

  async root(): Promise<Document> {
    return this.#options.root?.() ?? documentOf(this.#image.manifest)
  }

  async manifest({ digest }: Descriptor): Promise<Document> {
    const found = [this.#image.manifest, ...(this.#options.manifests ?? [])].find((each) => digestOf(each) === digest)
    if (found === undefined) throw new BandSoxError('image-not-found', `there is no manifest ${digest}`)
    return documentOf(found)
  }

  async openBlob(descriptor: Descriptor, offset: number, signal?: AbortSignal) {
    this.opened.push({ digest: descriptor.digest, offset })
    const other = this.#options.open?.(descriptor, offset, signal)
    if (other !== undefined) return other
    const blob = this.#image.blobs.get(descriptor.digest)
    if (blob === undefined) throw new BandSoxError('image-invalid', `there is no blob ${descriptor.digest}`)
    return { stream: streamOf([blob.subarray(offset)]), startsAt: offset }
  }

  async close(): Promise<void> {
    // Nothing is open.
  }
}

export const streamOf = (pieces: Iterable<Buffer> | AsyncIterable<Buffer>): Readable =>
  Readable.from(pieces, { objectMode: false })

export function memoryFiles(files: ReadonlyMap<string, Buffer>): TarFiles {
  return {
    name: 'files in memory',
    resolve: (path) => (files.has(path) ? path : undefined),
    sizeOf: async (path) => files.get(path)?.length,
    open: (path, offset) => streamOf([files.get(path)?.subarray(offset) ?? Buffer.alloc(0)]),
    close: async () => undefined,
  }
}

/** The files of an image layout. */
export function layoutFiles({ manifest, blobs }: MemoryImage, name = ''): Map<string, Buffer> {
  const annotations = name === '' ? {} : { annotations: { 'org.opencontainers.image.ref.name': name } }
  const index = json({ schemaVersion: 2, manifests: [{ ...described(manifest, MANIFEST), ...annotations }] })
  const all = [manifest, ...blobs.values()]
  return new Map([
    ['oci-layout', json({ imageLayoutVersion: '1.0.0' })],
    ['index.json', index],
    ...all.map((blob): [string, Buffer] => [`blobs/sha256/${digestOf(blob).slice(7)}`, blob]),
  ])
}

/** The files of `docker save`. */
export function dockerFiles(
  { configuration }: MemoryImage,
  layers: readonly Buffer[],
  names: string[],
): Map<string, Buffer> {
  const paths = layers.map((_, index) => `${index}/layer.tar`)
  return new Map([
    ['manifest.json', json([{ Config: 'config.json', RepoTags: names, Layers: paths }])],
    ['config.json', configuration],
    ...layers.map((layer, index): [string, Buffer] => [`${index}/layer.tar`, layer]),
  ])
}
