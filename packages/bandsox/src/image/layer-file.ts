/** Writes a layer as a file: packed by gzip, with the digests of both forms, within what an image may have. */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createWriteStream } from 'node:fs'
import { pipeline } from 'node:stream/promises'
import { createGzip } from 'node:zlib'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { ImageBudget } from './layer/layer-index.js'
import type { ImageLimits } from './layer/limits.js'
import { mediaTypes } from './manifest.js'
import type { Descriptor } from './source/source.js'

export interface LayerFile {
  file: string
  descriptor: Descriptor
  /** Of the plain tar. */
  diffId: string
}

export class LayerWriter {
  readonly #file: string
  readonly #budget: ImageBudget
  readonly #gzip = createGzip()
  readonly #plain = createHash('sha256')
  readonly #packed = createHash('sha256')
  readonly #written: Promise<void>
  #bytes = 0

  /** @param file Must not exist yet. */
  constructor(file: string, limits: ImageLimits) {
    this.#file = file
    this.#budget = new ImageBudget(limits)
    this.#written = pipeline(this.#gzip, (pieces) => this.#counted(pieces), createWriteStream(file, { flags: 'wx' }))
    this.#written.catch(() => undefined) // whoever writes or ends hears of it
  }

  async *#counted(pieces: AsyncIterable<Buffer>): AsyncGenerator<Buffer> {
    for await (const piece of pieces) {
      this.#packed.update(piece)
      this.#bytes += piece.length
      yield piece
    }
  }

  /** Takes a piece of the tar, at the disk's pace. @throws `image-too-large`, `no-space`. */
  async write(data: Buffer): Promise<void> {
    this.#budget.takeBytes(data.length)
    this.#plain.update(data)
    if (this.#gzip.write(data)) return
    const ended = new AbortController()
    try {
      await Promise.race([once(this.#gzip, 'drain', { signal: ended.signal }), this.#end()])
    } finally {
      ended.abort()
    }
  }

  /** @throws `no-space`. */
  async finish(): Promise<LayerFile> {
    this.#gzip.end()
    await this.#end()
    const digest = `sha256:${this.#packed.digest('hex')}`
    return {
      file: this.#file,
      descriptor: { mediaType: `${mediaTypes.ociLayer}+gzip`, digest, size: this.#bytes },
      diffId: `sha256:${this.#plain.digest('hex')}`,
    }
  }

  /** Gives up; the file is the caller's to remove. Harmless when it has finished. */
  async discard(): Promise<void> {
    this.#gzip.destroy()
    await this.#written.catch(() => undefined) // it is not to be read
  }

  async #end(): Promise<void> {
    try {
      await this.#written
    } catch (error) {
      if (!isSystemError(error, 'ENOSPC') && !isSystemError(error, 'EDQUOT')) throw error
      throw new BandSoxError('no-space', `no space for the layer: ${this.#file}`, {
        cause: error,
        hint: 'free some: bandsox system df, bandsox system prune',
      })
    }
  }
}
