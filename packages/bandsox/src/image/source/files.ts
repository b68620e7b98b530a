/** A set of files that an image lies in: a folder, or a tar that is read where it lies. */
import { createReadStream } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { MAX_DOCUMENT_BYTES } from './source.js'
import type { TarIndex } from './tar-index.js'

const PIECE_BYTES = 1024 * 1024

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

/** The files of a tar, some of which are links to others. */
export interface TarFiles extends ImageFiles {
  /** The path of the file that links lead to; undefined when there is none. */
  resolve(path: string): string | undefined
}

/**
 * Reads files where they lie in a tar that is not compressed.
 *
 * @param name For messages.
 */
export async function tarFiles(path: string, name: string, index: TarIndex): Promise<TarFiles> {
  const file = await open(path)
  return {
    name,
    resolve: (wanted) => index.resolve(wanted),
    sizeOf: async (wanted) => index.find(wanted)?.storedBytes,
    open(wanted, offset) {
      const found = index.find(wanted)
      if (found === undefined) throw new BandSoxError('image-invalid', `${name} holds no ${wanted}`)
      const { position, storedBytes } = found
      return Readable.from(readRange(file, position + offset, position + storedBytes), { objectMode: false })
    },
    close: () => file.close(),
  }
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
