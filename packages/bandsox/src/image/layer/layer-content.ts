/**
 * Reads a layer a second time, and writes those of its files that are in the image, as entries of the disk's tar.
 *
 * Sparse files are written whole: sqfstar (4.5.1) stops at a sparse file of which a part or the end is no multiple of 512 bytes,
 * and finds the zeros itself. It refuses GNU tar's own `--sparse` output of such files.
 */
import { BandSoxError } from '@bandsox/sdk'
import { type ByteString, type Content, readable } from '../../tar/tar-entry.js'
import { entryHeader, paddingAfter } from '../../tar/tar-writer.js'
import type { Inode } from './layer-tree.js'

/** Under this folder of the disk is the image: sqfstar takes attributes for every folder but its own root. */
export const ROOT_PREFIX = 'rootfs'
const ZEROS = Buffer.alloc(256 * 1024)

/**
 * @param inodes In the order of the tar, as an {@link ImageTree} returns them.
 * @param tar The unpacked layer from its beginning; left as soon as the last file is through.
 * @throws `artifact-damaged` when the tar is not the one that was indexed.
 */
export async function* layerContent(inodes: readonly Inode[], tar: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
  let cursor: Cursor | undefined
  try {
    for (const inode of inodes) {
      const [first, ...others] = inode.paths
      if (first === undefined) continue
      const { kind, content, target, device, mode, uid, gid, mtime, xattrs } = inode
      const attributes = { mode, uid, gid, mtime, xattrs }
      const path = `${ROOT_PREFIX}/${first}`
      const sizeBytes = kind === 'file' ? content.sizeBytes : 0
      yield entryHeader({ ...attributes, path, kind, target, device, sizeBytes })
      if (sizeBytes > 0) {
        cursor ??= new Cursor(tar)
        yield* wholeFile(cursor, content, first)
        yield* zeros(paddingAfter(sizeBytes))
      }
      for (const other of others) {
        yield entryHeader({
          ...attributes,
          xattrs: undefined,
          path: `${ROOT_PREFIX}/${other}`,
          kind: 'hardlink',
          target: path,
        })
      }
    }
  } finally {
    await cursor?.leave()
  }
}

/** @param path For the message. */
async function* wholeFile(
  cursor: Cursor,
  { position, sizeBytes, extents = [{ offset: 0, length: sizeBytes }] }: Content,
  path: ByteString,
): AsyncGenerator<Buffer> {
  let stored = position
  let end = 0
  for (const { offset, length } of extents) {
    yield* zeros(offset - end)
    yield* cursor.read(stored, length, path)
    stored += length
    end = offset + length
  }
  yield* zeros(sizeBytes - end)
}

function* zeros(count: number): Generator<Buffer> {
  for (let left = count; left > 0; left -= ZEROS.length) yield ZEROS.subarray(0, left)
}

/** Goes forward through a stream by position. */
class Cursor {
  readonly #source: AsyncIterator<Buffer>
  #piece: Buffer = Buffer.alloc(0)
  /** Of the first byte of `#piece`. */
  #position = 0

  constructor(source: AsyncIterable<Buffer>) {
    this.#source = source[Symbol.asyncIterator]()
  }

  /** @param path For the message. */
  async *read(position: number, length: number, path: ByteString): AsyncGenerator<Buffer> {
    const end = position + length
    while (this.#position < end) {
      if (this.#piece.length === 0) {
        const { done, value } = await this.#source.next()
        if (done === true) throw new BandSoxError('artifact-damaged', `the layer ended before ${readable(path)} did`)
        this.#piece = value
      }
      const wanted = this.#position < position ? position - this.#position : end - this.#position
      const taken = this.#piece.subarray(0, wanted)
      if (this.#position >= position) yield taken
      this.#position += taken.length
      this.#piece = this.#piece.subarray(taken.length)
    }
  }

  async leave(): Promise<void> {
    await this.#source.return?.()
  }
}
