/** Opens a tar as the set of files that it is; a compressed one is unpacked first, since files are read where they lie. */
import { createReadStream } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError } from '@bandsox/sdk'
import { makeWorkDirectory } from '../../artifact/publish.js'
import { type Compression, compressionOf, decompress } from '../layer/decompress.js'
import { ImageBudget } from '../layer/layer-index.js'
import type { ImageLimits } from '../layer/limits.js'
import { type TarFiles, tarFiles } from './files.js'
import { TarIndex } from './tar-index.js'

const PIECE_BYTES = 1024 * 1024

export interface TarArchiveOptions {
  /** Folder that a compressed tar is unpacked in. */
  workFolder: string
  limits: ImageLimits
  /** Told what takes time. */
  onActivity?: ((what: string) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * Reads a tar once, to its end or until it is known that it is something else.
 *
 * @param isForeign Tells that it is no archive of an image; asked again and again, while there is more and more in the index.
 * @returns undefined when it is something else: nothing is left of it then.
 * @throws `layer-invalid` when it is no tar; `image-too-large` when it unpacks to more than an image may have; `signal.reason`.
 */
export async function openTarArchive(
  path: string,
  isForeign: (index: TarIndex) => boolean,
  options: TarArchiveOptions,
): Promise<TarFiles | undefined> {
  try {
    if ((await compressionIn(path)) !== 'none') return await openCompressed(path, isForeign, options)
    options.onActivity?.(`reading ${path}`)
    const index = await readIndex(createReadStream(path, { highWaterMark: PIECE_BYTES }), isForeign, options)
    return index && (await tarFiles(path, path, index))
  } catch (error) {
    options.signal?.throwIfAborted()
    if (!(error instanceof BandSoxError)) throw error
    throw new BandSoxError(error.code, `cannot read ${path} as a tar: ${error.message}`, { cause: error })
  }
}

async function openCompressed(
  path: string,
  isForeign: (index: TarIndex) => boolean,
  options: TarArchiveOptions,
): Promise<TarFiles | undefined> {
  options.onActivity?.(`unpacking ${path}`)
  const { directory, remove } = await makeWorkDirectory(options.workFolder)
  try {
    const plain = join(directory, 'archive.tar')
    const output = await open(plain, 'wx')
    let index: TarIndex | undefined
    try {
      index = await readIndex(copied(unpacked(path, options), output), isForeign, options)
    } finally {
      await output.close()
    }
    if (index !== undefined) return closing(await tarFiles(plain, path, index), remove)
  } catch (error) {
    await remove()
    throw error
  }
  await remove()
  return undefined
}

/** @returns undefined when it is something else. */
async function readIndex(
  tar: AsyncIterable<Buffer>,
  isForeign: (index: TarIndex) => boolean,
  { signal }: TarArchiveOptions,
): Promise<TarIndex | undefined> {
  const index = new TarIndex()
  for await (const piece of tar) {
    signal?.throwIfAborted()
    index.write(piece)
    if (isForeign(index)) return undefined
  }
  index.end()
  return index
}

/** Counted as its layers are: a small file may unpack to more than the host's disk holds. */
async function* unpacked(path: string, { limits, signal }: TarArchiveOptions): AsyncGenerator<Buffer> {
  const budget = new ImageBudget(limits)
  for await (const piece of decompress(createReadStream(path, { highWaterMark: PIECE_BYTES }), signal)) {
    budget.takeBytes(piece.length)
    yield piece
  }
}

/** Written once the reader has taken it: what ends the reading is not written. */
async function* copied(source: AsyncIterable<Buffer>, output: FileHandle): AsyncGenerator<Buffer> {
  for await (const piece of source) {
    yield piece
    await output.writeFile(piece)
  }
}

const closing = (files: TarFiles, release: () => Promise<void>): TarFiles => ({
  ...files,
  async close() {
    await files.close()
    await release()
  },
})

async function compressionIn(path: string): Promise<Compression> {
  const file = await open(path)
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(8), 0, 8, 0)
    return compressionOf(buffer.subarray(0, bytesRead))
  } finally {
    await file.close()
  }
}
