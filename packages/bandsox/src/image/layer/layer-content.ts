/** Reads a layer a second time, and writes those of its files that are in the image, as entries of the disk's tar. */
import { BandSoxError } from '@bandsox/sdk'
import type { Inode } from './layer-tree.js'
import { readable } from './tar-entry.js'
import { entryHeader, paddingAfter } from './tar-writer.js'

/** Under this folder of the disk is the image: sqfstar takes attributes for every folder but its own root. */
export const ROOT_PREFIX = 'rootfs'

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
      yield entryHeader({ ...attributes, path, kind, target, device, ...(kind === 'file' && { content }) })
      if (kind === 'file' && content.storedBytes > 0) {
        cursor ??= new Cursor(tar)
        yield* cursor.read(content.position, content.storedBytes, first)
        yield Buffer.alloc(paddingAfter(content.storedBytes))
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
  async *read(position: number, length: number, path: string): AsyncGenerator<Buffer> {
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
