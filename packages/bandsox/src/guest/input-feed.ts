/** A command's standard input, sent at the pace at which the command takes it, over as many connections as it takes. */
import type { GuestConnection } from './connection.js'

/** PROTOCOL.md section 3: input that the host may have on its way; so much is kept for another connection. */
const WINDOW_BYTES = 262_144
const CHUNK_BYTES = 65_536

export class InputFeed {
  readonly #source: AsyncIterable<Uint8Array>
  #connection: GuestConnection | undefined
  /** What was read and not acknowledged, from `#acknowledged` on. */
  #kept: Buffer[] = []
  #read = 0
  #acknowledged = 0
  /** How much was handed to the present connection. */
  #sent = 0
  #atEnd = false
  #stopped = false
  readonly #waiting = new Set<() => void>()

  constructor(input: string | AsyncIterable<Uint8Array>) {
    this.#source = typeof input === 'string' ? once(Buffer.from(input)) : input
  }

  /**
   * Reads the source until it ends or nobody needs it any more, whether there is a connection or not. Nobody waits for this: a source may
   * be a person's keyboard, and a command that has ended must not wait for the next key.
   *
   * @throws What the source fails by.
   */
  async run(): Promise<void> {
    for await (const { buffer, byteOffset, byteLength } of this.#source) {
      const data = Buffer.from(buffer, byteOffset, byteLength)
      for (let offset = 0; offset < data.length; ) {
        while (this.#read - this.#acknowledged >= WINDOW_BYTES && !this.#stopped) await this.#change()
        if (this.#stopped) return
        const room = WINDOW_BYTES - (this.#read - this.#acknowledged)
        const piece = Buffer.from(data.subarray(offset, offset + room)) // a copy: its owner may use the buffer again
        offset += piece.length
        this.#kept.push(piece)
        this.#read += piece.length
        this.#changed()
      }
      if (this.#stopped) return
    }
    this.#atEnd = true
    this.#changed()
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
    this.#changed()
  }

  /**
   * Sends over this connection from now on.
   *
   * @param inputOffset How much has arrived in the guest.
   * @returns False for an offset that cannot be.
   */
  attach(connection: GuestConnection, inputOffset: number): boolean {
    if (inputOffset < this.#acknowledged || inputOffset > this.#sent) return false
    this.#connection = connection
    this.#sent = inputOffset
    void this.#pump(connection)
    return true
  }

  stop(): void {
    this.#stopped = true
    this.#kept = []
    this.#changed()
  }

  /** The only one that writes input to this connection, so that everything comes in its order. */
  async #pump(connection: GuestConnection): Promise<void> {
    const isMine = () => this.#connection === connection && !this.#stopped
    while (isMine()) {
      const piece = this.#next()
      if (piece !== undefined) {
        this.#sent += piece.length
        // Whoever reads from the connection has the same error, and finds another one, or ends the job by it.
        const isSent = await connection.sendData(piece, CHUNK_BYTES).then(
          () => true,
          () => false,
        )
        if (!isSent) return
      } else if (this.#atEnd) {
        if (connection.isOpen) connection.send({ type: 'eof' })
        return
      } else await this.#change()
    }
  }

  /** The next bytes that the present connection has not got. */
  #next(): Buffer | undefined {
    let from = this.#acknowledged
    for (const kept of this.#kept) {
      if (this.#sent < from + kept.length) return kept.subarray(this.#sent - from, this.#sent - from + CHUNK_BYTES)
      from += kept.length
    }
    return undefined
  }

  #forget(offset: number): void {
    for (let first = this.#kept[0]; first !== undefined && this.#acknowledged < offset; first = this.#kept[0]) {
      const gone = Math.min(first.length, offset - this.#acknowledged)
      this.#acknowledged += gone
      if (gone === first.length) this.#kept.shift()
      else this.#kept[0] = first.subarray(gone)
    }
  }

  #change(): Promise<void> {
    return new Promise((resolve) => void this.#waiting.add(resolve))
  }

  #changed(): void {
    const waiting = [...this.#waiting]
    this.#waiting.clear()
    for (const wake of waiting) wake()
  }
}

async function* once(data: Uint8Array): AsyncGenerator<Uint8Array> {
  if (data.length > 0) yield data
}
