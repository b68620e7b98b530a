/** A command's standard input, sent at the pace at which the command takes it, over as many connections as it takes. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import type { GuestConnection } from './connection.js'
import { isLinkFailure } from './ladder.js'

/** PROTOCOL.md section 3: input that the host may have on its way; so much is kept for another connection. */
const WINDOW_BYTES = 262_144
const CHUNK_BYTES = 65_536

export class InputFeed {
  readonly #source: AsyncIterable<Uint8Array>
  #connection: GuestConnection | undefined
  /** What was sent and not acknowledged, from `#acknowledged` on. */
  #kept: Buffer[] = []
  #sent = 0
  #acknowledged = 0
  #ended = false
  #stopped = false
  #changed: () => void = () => undefined

  constructor(input: string | AsyncIterable<Uint8Array>) {
    this.#source = typeof input === 'string' ? once(Buffer.from(input)) : input
  }

  /**
   * Sends until the source ends or nobody needs it any more. Nobody waits for this: a source may be a person's keyboard,
   * and a command that has ended must not wait for the next key. A source that fails closes the connection, and so ends
   * the job with its reason.
   */
  async run(connection: GuestConnection, signal: AbortSignal | undefined): Promise<void> {
    this.#connection = connection
    try {
      for await (const { buffer, byteOffset, byteLength } of this.#source) {
        await this.#send(Buffer.from(buffer, byteOffset, byteLength), signal)
        if (this.#stopped) return
      }
      if (this.#stopped) return
      this.#ended = true
      this.#connection?.send({ type: 'eof' })
    } catch (error) {
      if (this.#stopped) return
      const message = `the command's input could not be read, so it was killed: ${messageOf(error)}`
      this.#connection?.close(new BandSoxError('cancelled', message, { cause: error })) // what broke the connection itself was there first
    }
  }

  /** Bytes that the guest will not need again. */
  get acknowledged(): number {
    return this.#acknowledged
  }

  /** @returns False for an offset that goes back or beyond what was sent. */
  acknowledge(offset: number): boolean {
    if (offset < this.#acknowledged || offset > this.#sent) return false
    this.#forget(offset)
    this.#changed()
    return true
  }

  /** The connection broke: sending waits for another. */
  detach(): void {
    this.#connection = undefined
  }

  /**
   * Goes on over another connection.
   *
   * @param inputOffset How much has arrived in the guest.
   * @returns False for an offset that cannot be.
   */
  attach(connection: GuestConnection, inputOffset: number): boolean {
    if (inputOffset < this.#acknowledged || inputOffset > this.#sent) return false
    let at = this.#acknowledged
    for (const kept of this.#kept) {
      const missing = kept.subarray(Math.max(0, inputOffset - at))
      at += kept.length
      // Not waited for: the window bounds it, and its failure is the connection's, which its reader sees.
      if (missing.length > 0) connection.sendData(missing, CHUNK_BYTES).catch(() => undefined)
    }
    if (this.#ended) connection.send({ type: 'eof' })
    this.#connection = connection
    this.#changed()
    return true
  }

  stop(): void {
    this.#stopped = true
    this.#kept = []
    this.#changed()
  }

  async #send(data: Buffer, signal: AbortSignal | undefined): Promise<void> {
    let offset = 0
    while (offset < data.length && !this.#stopped) {
      const room = WINDOW_BYTES - (this.#sent - this.#acknowledged)
      const connection = this.#connection
      if (room === 0 || connection === undefined) {
        await new Promise<void>((resolve) => {
          this.#changed = resolve
        })
        continue
      }
      const piece = Buffer.from(data.subarray(offset, offset + room)) // a copy: its owner may use the buffer again
      offset += piece.length
      this.#sent += piece.length
      this.#kept.push(piece)
      try {
        await connection.sendData(piece, CHUNK_BYTES, signal)
      } catch (error) {
        // Whoever reads from the connection finds another, and what is kept is sent over that.
        if (!isLinkFailure(error) || signal?.aborted) throw error
        if (this.#connection === connection) this.#connection = undefined
      }
    }
  }

  #forget(offset: number): void {
    for (let first = this.#kept[0]; first !== undefined && this.#acknowledged < offset; first = this.#kept[0]) {
      const gone = Math.min(first.length, offset - this.#acknowledged)
      this.#acknowledged += gone
      if (gone === first.length) this.#kept.shift()
      else this.#kept[0] = first.subarray(gone)
    }
  }
}

async function* once(data: Uint8Array): AsyncGenerator<Uint8Array> {
  if (data.length > 0) yield data
}
