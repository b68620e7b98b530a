/** Layers to a disk: each is written as soon as those above it are known, while those below are still being fetched. */
import { Readable } from 'node:stream'
import { entryHeader, tarEnd } from '../tar/tar-writer.js'
import { ImageTree } from './layer/image-tree.js'
import { layerContent, ROOT_PREFIX } from './layer/layer-content.js'
import type { LayerTree } from './layer/layer-tree.js'
import { writeSquashfs } from './squashfs.js'

export interface DiskLayer {
  /** What is in it; resolves when all of it was read and verified. */
  tree: Promise<LayerTree>
  /** Its unpacked tar, from the beginning. */
  open: () => AsyncIterable<Buffer>
}

export interface WriteDiskOptions {
  /** The highest first. */
  layers: readonly DiskLayer[]
  output: string
  /** Bytes that went into the disk, before it compresses them. */
  onProgress?: ((bytes: number) => void) | undefined
  signal?: AbortSignal | undefined
}

/** Small files would each cost two system calls for their header and their bytes. */
const PIECE_BYTES = 256 * 1024

/** @throws What a layer's `tree` or `open` throws; `layer-invalid`; `host-missing`, `command-failed` of sqfstar. */
export async function writeDisk({ layers, output, onProgress, signal }: WriteDiskOptions): Promise<void> {
  const pieces = inPieces(diskEntries(layers), onProgress)
  const tar = Readable.from(pieces, { objectMode: false, highWaterMark: 2 * PIECE_BYTES })
  await writeSquashfs({ entries: tar, output, signal })
}

/** The disk as a tar. @param layers The highest first. */
export async function* diskEntries(layers: readonly DiskLayer[]): AsyncGenerator<Buffer> {
  const image = new ImageTree()
  for (const { tree, open } of layers) yield* layerContent(await image.merge(await tree), open())
  // After their contents, since the attributes of a folder may be a lower layer's; sqfstar takes them at any time.
  for (const { path, attributes } of image.finish()) {
    yield entryHeader({
      ...attributes,
      path: path === '' ? ROOT_PREFIX : `${ROOT_PREFIX}/${path}`,
      kind: 'directory',
    })
  }
  yield tarEnd()
}

async function* inPieces(source: AsyncGenerator<Buffer>, onPiece?: (bytes: number) => void): AsyncGenerator<Buffer> {
  let held: Buffer[] = []
  let bytes = 0
  let total = 0
  for await (const part of source) {
    held.push(part)
    bytes += part.length
    if (bytes < PIECE_BYTES) continue
    yield Buffer.concat(held, bytes)
    total += bytes
    onPiece?.(total)
    held = []
    bytes = 0
  }
  if (bytes > 0) yield Buffer.concat(held, bytes)
}
