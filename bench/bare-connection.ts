/** A connection to bench-guest, as plain as Node can have one: no frames, no windows, no time limits. */
import { constants, openSync } from 'node:fs'
import { Socket } from 'node:net'
import { connectUnixSocket } from './internals.js'

/** Received and not yet taken; above it the socket is told to wait. */
const MAX_QUEUED_BYTES = 1_048_576
const NEWLINE = 0x0a
/** What bench-guest says first over a serial line; whatever came before is the console's. */
const LINE_MARK = 'bench-guest listens'

export class BareConnection {
  /** Two for a pair of FIFOs, else the same one. */
  readonly #from: Socket
  readonly #to: Socket
  readonly #queue: Buffer[] = []
  #queuedBytes = 0
  #ended: Error | undefined
  #wake: () => void = () => undefined

  private constructor(from: Socket, to: Socket = from) {
    this.#from = from
    this.#to = to
    from.on('data', (chunk) => {
      this.#queue.push(chunk)
      this.#queuedBytes += chunk.length
      if (this.#queuedBytes > MAX_QUEUED_BYTES) from.pause()
      this.#wake()
    })
    for (const socket of new Set([from, to])) {
      socket.on('error', (error) => this.#end(error))
      socket.on('close', () => this.#end(new Error('bench-guest closed the connection')))
    }
  }

  /**
   * @param socketPath Host path of a VM's vsock socket.
   * @param signal Ends the try, but not the connection that comes of it.
   */
  static async open(socketPath: string, port: number, signal?: AbortSignal): Promise<BareConnection> {
    const connection = new BareConnection(await connectUnixSocket(socketPath, signal))
    const giveUp = () => connection.close()
    signal?.addEventListener('abort', giveUp, { once: true })
    try {
      await connection.write(Buffer.from(`CONNECT ${port}\n`))
      const reply = await connection.line()
      if (!reply.startsWith('OK ')) throw new Error(`the vsock socket answered ${JSON.stringify(reply)}`)
      return connection
    } catch (error) {
      connection.close()
      throw error
    } finally {
      signal?.removeEventListener('abort', giveUp)
    }
  }

  /**
   * Over the VMM's own end of a virtio-serial port.
   *
   * @param socketPath Of a VMM whose guest need not have booted yet.
   * @param signal Ends the wait for the guest.
   */
  static async overPort(socketPath: string, signal: AbortSignal): Promise<BareConnection> {
    return await new BareConnection(await connectUnixSocket(socketPath, signal)).#whenMarked(signal)
  }

  /** Over a UART, by the FIFOs that its VMM reads and writes. */
  static async overFifos(
    { toGuest, fromGuest }: { toGuest: string; fromGuest: string },
    signal: AbortSignal,
  ): Promise<BareConnection> {
    // Nonblocking, and for both directions: opening does not wait for the VMM, and there is no end of file.
    const flags = constants.O_RDWR | constants.O_NONBLOCK
    return await new BareConnection(
      new Socket({ fd: openSync(fromGuest, flags), readable: true, writable: false }),
      new Socket({ fd: openSync(toGuest, flags), readable: false, writable: true }),
    ).#whenMarked(signal)
  }

  async #whenMarked(signal: AbortSignal): Promise<this> {
    const giveUp = () => {
      this.close()
      this.#end(new Error('bench-guest does not say that it listens'))
    }
    signal.addEventListener('abort', giveUp, { once: true })
    try {
      while (!(await this.line()).endsWith(LINE_MARK));
      return this
    } finally {
      signal.removeEventListener('abort', giveUp)
    }
  }

  /** Sends a request and gives the line that answers it. */
  async ask(request: string): Promise<string> {
    await this.write(Buffer.from(`${request}\n`))
    return await this.line()
  }

  /** Resolves when the kernel has all of it, and the buffer may be used again. */
  write(data: Buffer): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#to.write(data, (error) =>
        error ? reject(new Error(`cannot write to bench-guest: ${error.message}`, { cause: error })) : resolve(),
      )
    })
  }

  async line(): Promise<string> {
    let line = Buffer.alloc(0)
    for (;;) {
      const chunk = await this.#next()
      const end = chunk.indexOf(NEWLINE)
      line = Buffer.concat([line, end === -1 ? chunk : chunk.subarray(0, end)])
      if (end === -1) continue
      this.#putBack(chunk.subarray(end + 1))
      return line.toString()
    }
  }

  /** Hands over exactly `size` bytes, in the pieces in which they came. */
  async bytes(size: number, take: (piece: Buffer) => Promise<void> | void): Promise<void> {
    for (let left = size; left > 0; ) {
      const chunk = await this.#next()
      const piece = chunk.subarray(0, left)
      this.#putBack(chunk.subarray(piece.length))
      left -= piece.length
      await take(piece)
    }
  }

  close(): void {
    this.#from.destroy()
    this.#to.destroy()
  }

  async #next(): Promise<Buffer> {
    for (;;) {
      const chunk = this.#queue.shift()
      if (chunk !== undefined) {
        this.#queuedBytes -= chunk.length
        if (this.#from.isPaused() && this.#queuedBytes <= MAX_QUEUED_BYTES) this.#from.resume()
        return chunk
      }
      if (this.#ended !== undefined) throw this.#ended
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  #putBack(chunk: Buffer): void {
    if (chunk.length === 0) return
    this.#queue.unshift(chunk)
    this.#queuedBytes += chunk.length
  }

  #end(error: Error): void {
    this.#ended ??= error
    this.#wake()
  }
}
