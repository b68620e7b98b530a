/** A set of files that an image lies in: a folder, or a tar that is read where it lies. */
import { createReadStream } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { join, posix } from 'node:path'
import { Readable } from 'node:stream'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import type { Content } from '../layer/tar-entry.js'
import { TarReader } from '../layer/tar-reader.js'
import { MAX_DOCUMENT_BYTES } from './source.js'

export interface ImageFiles {
  /** For messages. */
  readonly name: string
  /** Bytes of a file; undefined when there is none. */
  sizeOf(path: string): Promise<number | undefined>
  /** From an offset on. The file is there. */
  open(path: string, offset: number): Readable
  close(): Promise<void>
}

/** A small file, whole. @throws `image-invalid` when it is missing or no document. */
export async function readDocumentFile(files: ImageFiles, path: string): Promise<Buffer> {
  const size = await files.sizeOf(path)
  if (size === undefined) throw new BandSoxError('image-invalid', `${files.name} holds no ${path}`)
  if (size > MAX_DOCUMENT_BYTES) {
    throw new BandSoxError('image-invalid', `${path} in ${files.name} has ${size} bytes, over ${MAX_DOCUMENT_BYTES}`)
  }
  const pieces: Buffer[] = []
  for await (const piece of files.open(path, 0)) pieces.push(piece as Buffer)
  return Buffer.concat(pieces)
}

/** Paths are made here from checked digests, never taken from the image. */
export function folderFiles(folder: string): ImageFiles {
  return {
    name: folder,
    async sizeOf(path) {
      try {
        const stats = await stat(join(folder, path)) // not opened: a pipe would wait for who writes to it
        return stats.isFile() ? stats.size : undefined
      } catch (error) {
        if (isSystemError(error, 'ENOENT') || isSystemError(error, 'ENOTDIR')) return undefined
        throw error
      }
    },
    open: (path, offset) => createReadStream(join(folder, path), { start: offset, highWaterMark: PIECE_BYTES }),
    close: async () => undefined,
  }
}

const PIECE_BYTES = 1024 * 1024
/** An image has some dozen files; a tar with more is something else. */
const MAX_FILES = 100_000
/** `docker save` of old links a layer that comes twice. */
const MAX_LINKS = 8

/**
 * The files of a tar that is not compressed; the tar is read once, passing over contents.
 *
 * @param name For messages.
 * @throws `layer-invalid` when it is no tar.
 */
export async function tarFiles(path: string, name: string, signal?: AbortSignal): Promise<ImageFiles> {
  const contents = new Map<string, Content>()
  const links = new Map<string, string>()
  const reader = new TarReader(({ kind, path: written, target, content }) => {
    if (contents.size + links.size >= MAX_FILES) {
      throw new BandSoxError('image-invalid', `${name} holds over ${MAX_FILES} files`)
    }
    const clean = posix.normalize(written).replace(/^\.?\/+/, '')
    // Of two of one name the later holds.
    contents.delete(clean)
    links.delete(clean)
    if (kind === 'file') contents.set(clean, content)
    else if (kind === 'symlink') links.set(clean, posix.join(posix.dirname(clean), target))
    else if (kind === 'hardlink') links.set(clean, posix.normalize(target).replace(/^\.?\/+/, ''))
  })
  const file = await open(path)
  try {
    await indexFile(file, reader, signal)
  } catch (error) {
    await file.close()
    if (!(error instanceof BandSoxError)) throw error
    throw new BandSoxError(error.code, `cannot read ${name} as a tar: ${error.message}`, { cause: error })
  }
  const find = (wanted: string): Content | undefined => {
    let at: string | undefined = wanted
    for (let followed = 0; at !== undefined && followed <= MAX_LINKS; followed++) {
      const found = contents.get(at)
      if (found !== undefined) return found
      at = links.get(at)
    }
    return undefined
  }
  return {
    name,
    sizeOf: async (wanted) => find(wanted)?.storedBytes,
    open(wanted, offset) {
      const content = find(wanted)
      if (content === undefined) throw new BandSoxError('image-invalid', `${name} holds no ${wanted}`)
      return Readable.from(readRange(file, content.position + offset, content.position + content.storedBytes), {
        objectMode: false,
      })
    },
    close: () => file.close(),
  }
}

async function indexFile(file: FileHandle, reader: TarReader, signal?: AbortSignal): Promise<void> {
  const { size } = await file.stat()
  for await (const piece of readRange(file, 0, size)) {
    signal?.throwIfAborted()
    reader.write(piece)
  }
  reader.end()
}

async function* readRange(file: FileHandle, start: number, end: number): AsyncGenerator<Buffer> {
  for (let position = start; position < end; ) {
    const wanted = Math.min(PIECE_BYTES, end - position)
    const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(wanted), 0, wanted, position)
    if (bytesRead === 0) return
    position += bytesRead
    yield buffer.subarray(0, bytesRead)
  }
}
