/** What an upload is read from: a file, bytes, or a stream that comes only once. Each can go back to what the guest has not confirmed. */
import type { FileHandle } from 'node:fs/promises'

/** Read from the host's file at once; two such buffers are in use, one being filled while the other is sent. */
const BLOCK_BYTES = 1_048_576

export interface UploadSource {
  /** When known beforehand; the guest then refuses anything else. */
  readonly sizeBytes: number | undefined
  /**
   * The content from an offset on. Read again, from the last offset that the guest has or a later one, when a connection broke; the reading
   * before it has been left by then. A block stays untouched until the next but one is asked for.
   */
  read(offset: number): AsyncIterable<Uint8Array>
  /** The guest has everything before `offset`: it will not be read again. */
  confirmed(offset: number): void
  /** Ends the reading, and lets go of what it holds; harmless when repeated. A stream that is waited for is not waited for here. */
  close(): Promise<void>
}

/** An open file, which stays its owner's. */
export function fileSource(file: FileHandle, sizeBytes: number): UploadSource {
  const readings: AsyncGenerator<Uint8Array>[] = []
  return {
    sizeBytes,
    read(offset) {
      const reading = fileBlocks(file, offset)
      readings.push(reading)
      return reading
    },
    confirmed: () => undefined,
    // None may run on into a file that its owner closes.
    close: async () => void (await Promise.all(readings.splice(0).map((reading) => reading.return(undefined)))),
  }
}

export function bytesSource(bytes: Uint8Array): UploadSource {
  return {
    sizeBytes: bytes.length,
    async *read(offset) {
      if (offset < bytes.length) yield bytes.subarray(offset)
    },
    confirmed: () => undefined,
    close: async () => undefined,
  }
}

/** A stream that comes once: what was read is kept until it is confirmed, which the guest's window bounds. */
export function streamSource(stream: AsyncIterable<Uint8Array>, sizeBytes?: number): UploadSource {
  return new StreamSource(stream, sizeBytes)
}

class StreamSource implements UploadSource {
  readonly sizeBytes: number | undefined
  readonly #blocks: AsyncIterator<Uint8Array>
  /** Copies, one behind the other: the stream's owner may use its buffers again. */
  readonly #kept: Buffer[] = []
  #keptFrom = 0
  #atEnd = false
  #failure: { error: unknown } | undefined
  /** The block that is being waited for, by however many readings: one that was left may wait still. */
  #filling: Promise<void> | undefined

  constructor(stream: AsyncIterable<Uint8Array>, sizeBytes: number | undefined) {
    this.sizeBytes = sizeBytes
    this.#blocks = stream[Symbol.asyncIterator]()
  }

  async *read(offset: number): AsyncGenerator<Uint8Array> {
    for (let at = offset; ; ) {
      const kept = this.#keptAt(at)
      if (kept !== undefined) {
        at += kept.length
        yield kept
        continue
      }
      // Kept as well: a stream that has failed says that it is at its end when it is asked again.
      if (this.#failure !== undefined) throw this.#failure.error
      if (this.#atEnd) return
      this.#filling ??= this.#fill()
      await this.#filling
    }
  }

  /** The only one who asks the stream, so that each block is kept once. */
  async #fill(): Promise<void> {
    try {
      const { done, value } = await this.#blocks.next()
      if (done) this.#atEnd = true
      else this.#kept.push(Buffer.from(value))
    } catch (error) {
      this.#failure = { error }
    } finally {
      this.#filling = undefined
    }
  }

  confirmed(offset: number): void {
    for (
      let first = this.#kept[0];
      first !== undefined && this.#keptFrom + first.length <= offset;
      first = this.#kept[0]
    ) {
      this.#keptFrom += first.length
      this.#kept.shift()
    }
  }

  async close(): Promise<void> {
    this.#kept.length = 0
    if (this.#atEnd || this.#failure !== undefined) return
    this.#atEnd = true
    const ended = this.#blocks.return?.()
    // Behind a block that was asked for and may never come, its end would not come either; nobody is left to hear of it.
    if (this.#filling === undefined) await ended
    else ended?.catch(() => undefined)
  }

  #keptAt(offset: number): Buffer | undefined {
    let from = this.#keptFrom
    for (const block of this.#kept) {
      if (offset < from + block.length) return block.subarray(offset - from)
      from += block.length
    }
    return undefined
  }
}

/** The content of an open host file from `offset` on, read ahead by one block. */
export async function* fileBlocks(file: FileHandle, offset = 0): AsyncGenerator<Uint8Array> {
  const buffers = [Buffer.allocUnsafe(BLOCK_BYTES), Buffer.allocUnsafe(BLOCK_BYTES)] as const
  let turn = 0
  let position = offset
  const readNext = () => file.read(buffers[turn++ % 2 === 0 ? 0 : 1], 0, BLOCK_BYTES, position)
  let next = readNext()
  try {
    for (;;) {
      const { bytesRead, buffer } = await next
      if (bytesRead === 0) return
      position += bytesRead
      next = readNext()
      next.catch(() => undefined) // seen when it is awaited; until then the block before it is being sent
      yield buffer.subarray(0, bytesRead)
    }
  } finally {
    await next // no read may run on into a file that its owner closes
  }
}
