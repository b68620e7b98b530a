/** One connection to the agent: frames in both directions, each wait for the guest bounded in time. */
import type { Socket } from 'node:net'
import { BandSoxError, type LinkKind, messageOf, printableLine } from '@bandsox/sdk'
import type { Link } from '../link/link.js'
import { type BulkKind, encodeHeader, encodeMessage, FrameDecoder, type Received } from '../wire/frame.js'
import type { ToGuest, ToHost, ToHostType } from '../wire/message.js'
import { ProtocolError } from '../wire/protocol-error.js'
import { GuestFault, guestFault } from './guest-fault.js'

export const PROTOCOL_VERSION = 1

/** How long the guest may leave us without the answer, or the progress, that it owes us: a serial line may be very slow. */
export const ANSWER_TIMEOUT_MS = { vsock: 12_000, serial: 30_000 } as const satisfies Record<LinkKind, number>

/**
 * What is handed to the kernel at once, and so has to be taken within the time for an answer; and the most that a data frame carries, of
 * which the agent says nothing before it has the whole. A UART takes 64 KiB in a second under QEMU, but in half a minute where each byte is an
 * exit of a nested machine, as was measured with Firecracker: 1 to 7 KB/s.
 */
const SEND_BYTES = { vsock: 1_048_576, serial: 16_384 } as const satisfies Record<LinkKind, number>

/** How long a link may take to carry a last word. */
const LAST_WORD_MS = 1_000
/** What a guest answers to an `abort`, or had said before it came. */
const LAST_ANSWERS: readonly string[] = ['exit', 'error', 'complete'] satisfies ToHostType[]

export type Hello = Extract<ToHost, { type: 'hello' }>
export type FromGuest = Received<ToHost>
type MessageOf<T extends ToHostType> = Extract<ToHost, { type: T }>

export class GuestConnection {
  readonly link: LinkKind
  /** How long each wait for the guest may last, unless the wait says otherwise. */
  readonly answerTimeoutMs: number
  readonly #stream: Socket
  readonly #chunks: AsyncIterator<Buffer>
  readonly #decoder = new FrameDecoder('to-host')
  /** What the last chunk still holds. */
  #pending: Iterator<FromGuest> = [][Symbol.iterator]()
  #hello: Hello | undefined
  #failure: unknown
  /**
   * Said behind everything else when the connection is given up, for what would otherwise wait in the guest for us to come back; not said
   * when the link broke.
   */
  farewell: ToGuest | undefined
  #isLeaving = false
  /** The read under way, kept across a wait that was cut short and across idleness. */
  #next: Promise<IteratorResult<Buffer>> | undefined

  private constructor(stream: Socket, link: LinkKind, answerTimeoutMs: number) {
    this.#stream = stream
    this.link = link
    this.answerTimeoutMs = answerTimeoutMs
    this.#chunks = stream[Symbol.asyncIterator]() as AsyncIterator<Buffer>
    // Whoever waits sees the error through the iterator; this keeps an idle connection's end from ending the process.
    stream.on('error', (error) => this.close(error))
  }

  /**
   * Opens a connection and greets the agent.
   *
   * @param options.timeoutMs For handshake and hello together. Default: `answerTimeoutMs`.
   * @param options.answerTimeoutMs Of every later wait. Default: `ANSWER_TIMEOUT_MS` of the link.
   * @throws `link-refused`, `guest-silent`, `guest-protocol`, `agent-incompatible`, or `signal.reason`.
   */
  static async open(
    link: Link,
    options: {
      signal?: AbortSignal | undefined
      timeoutMs?: number | undefined
      answerTimeoutMs?: number | undefined
    } = {},
  ): Promise<GuestConnection> {
    const { signal, answerTimeoutMs = ANSWER_TIMEOUT_MS[link.kind], timeoutMs = answerTimeoutMs } = options
    const deadline = performance.now() + timeoutMs
    const stream = await openWithin(link, AbortSignal.timeout(timeoutMs), signal)
    const connection = new GuestConnection(stream, link.kind, answerTimeoutMs)
    try {
      connection.send({ type: 'hello', protocol: PROTOCOL_VERSION, minProtocol: PROTOCOL_VERSION })
      const hello = await connection.receiveMessage('hello', { signal, timeoutMs, deadline })
      if (hello.protocol !== PROTOCOL_VERSION) {
        throw new BandSoxError(
          'agent-incompatible',
          `the agent ${printableLine(hello.agent)} chose protocol ${hello.protocol}, we speak ${PROTOCOL_VERSION}`,
        )
      }
      connection.#hello = hello
      return connection
    } catch (error) {
      connection.close(error)
      throw error
    }
  }

  get hello(): Hello {
    if (this.#hello === undefined) throw new BandSoxError('internal', 'the connection has not been greeted')
    return this.#hello
  }

  /** False once it was closed by either side. */
  get isOpen(): boolean {
    return !this.#isLeaving && !this.#stream.destroyed && !this.#stream.readableEnded && this.#stream.writable
  }

  /**
   * Leaves the connection idle: the process may end meanwhile, and its end is noticed (`isOpen`) though nobody waits.
   * What an idle guest sends is read when the next operation begins, and is a violation then.
   */
  rest(): void {
    this.#stream.unref()
    this.#next ??= this.#chunks.next()
    this.#next.catch((error: unknown) => this.close(error))
  }

  /** Takes the connection into use again. */
  wake(): void {
    this.#stream.ref()
  }

  /** @throws `bad-request` for a message that is larger than a frame may be: only a caller's arguments make one so. */
  send(message: ToGuest): void {
    this.#stream.write(this.#encoded(message))
  }

  /**
   * Sends bytes as data frames of at most `chunkBytes`, or `SEND_BYTES`, without copying them; when it resolves the kernel has them all and
   * the buffer may be used again.
   *
   * @throws `link-lost`, `guest-silent` when `SEND_BYTES` are not taken within `answerTimeoutMs`, or `signal.reason`.
   */
  async sendData(data: Buffer, chunkBytes: number, signal?: AbortSignal): Promise<void> {
    const most = SEND_BYTES[this.link]
    for (let offset = 0; offset < data.length; offset += most)
      await this.#sendAtOnce(data.subarray(offset, offset + most), chunkBytes, signal)
  }

  async #sendAtOnce(data: Buffer, chunkBytes: number, signal: AbortSignal | undefined): Promise<void> {
    const flushed = new Promise<void>((resolve, reject) => {
      this.#stream.cork()
      for (let offset = 0; offset < data.length; offset += chunkBytes) {
        const piece = data.subarray(offset, offset + chunkBytes)
        this.#stream.write(encodeHeader('data', piece.length))
        const isLast = offset + chunkBytes >= data.length
        this.#stream.write(piece, isLast ? (error) => (error ? reject(error) : resolve()) : undefined)
      }
      this.#stream.uncork()
    })
    await this.#bounded(flushed, { signal })
  }

  /**
   * The next frame or piece of one.
   *
   * @param options.timeoutMs For a whole message, or for the next piece of a bulk frame: a guest that sends a byte now and
   *   then has not answered. Default `answerTimeoutMs`; `Infinity` where silence is no fault, as in a quiet command.
   * @throws `guest-protocol` with the violation's name, `guest-silent`, `link-lost` at the end of the stream, `signal.reason`.
   */
  async receive(
    options: { signal?: AbortSignal | undefined; timeoutMs?: number; deadline?: number } = {},
  ): Promise<FromGuest> {
    const { signal, timeoutMs = this.answerTimeoutMs, deadline = performance.now() + timeoutMs } = options
    for (;;) {
      if (this.#isLeaving) throw this.#leftBy
      const next = this.#decoded()
      if (next !== undefined) return next
      this.#next ??= this.#chunks.next()
      this.#take(await this.#bounded(this.#next, { signal, timeoutMs, deadline }))
    }
  }

  /** The next message, which must be a `type`. @throws As `receive`, and the guest's own `error` as an error of ours. */
  async receiveMessage<T extends ToHostType>(
    type: T,
    options: { signal?: AbortSignal | undefined; timeoutMs?: number; deadline?: number; about?: string } = {},
  ): Promise<MessageOf<T>> {
    const frame = await this.receive(options)
    if (frame.kind === 'message' && frame.message.type === type) return frame.message as MessageOf<T>
    throw this.unexpected(frame, options.about)
  }

  /** The error for a frame that does not belong here: the guest's own `error` translated, else a violation. Closes on a violation. */
  unexpected(frame: FromGuest, about = 'the operation'): BandSoxError {
    if (frame.kind === 'message' && frame.message.type === 'error') {
      this.farewell = undefined // the guest has ended it by itself
      return guestFault(frame.message)
    }
    const what =
      frame.kind === 'message' ? `the message ${frame.message.type}` : `a ${frame.kind satisfies BulkKind} frame`
    return this.violation(`${what} is out of place in ${about}`)
  }

  /** Closes the connection for something the guest must not do. */
  violation(message: string, cause?: unknown): BandSoxError {
    const error = new BandSoxError('guest-protocol', `the guest broke the protocol: ${message}`, { cause })
    this.close(error)
    return error
  }

  /**
   * Waits for something that is not the guest's, such as the next piece of a file, and takes what the guest says meanwhile.
   *
   * @throws What `work` or `onFrame` fails by, which leaves the connection as it is; `guest-protocol`; `link-lost` at the connection's end;
   *   `signal.reason`.
   */
  async during<T>(
    work: Promise<T>,
    options: { signal: AbortSignal | undefined; onFrame: (frame: FromGuest) => void },
  ): Promise<T> {
    const { signal, onFrame } = options
    const worked = work.then(
      (value) => ({ value }),
      (error: unknown) => ({ error }),
    )
    for (;;) {
      for (let frame = this.#decoded(); frame !== undefined; frame = this.#decoded()) onFrame(frame)
      this.#next ??= this.#chunks.next()
      const said = this.#next.then((chunk) => ({ chunk }))
      said.catch(() => undefined) // it is `#next`'s, which is awaited again
      const first = await this.#bounded(Promise.race([worked, said]), { signal, timeoutMs: Number.POSITIVE_INFINITY })
      if ('value' in first) return first.value
      if ('error' in first) throw first.error
      this.#take(first.chunk)
    }
  }

  /** Ends the connection; the agent then ends what it did for it. Harmless when repeated; the first reason stays. */
  close(reason?: unknown): void {
    this.#failure ??= reason
    const { farewell } = this
    this.farewell = undefined
    if (farewell === undefined || !this.isOpen || isLinkFailure(reason)) {
      // One that is on its way already is let go: it closes the stream after it.
      if (!this.#isLeaving || isLinkFailure(reason)) this.#stream.destroy()
      return
    }
    this.#isLeaving = true
    this.#stream.write(this.#encoded(farewell))
    const timer = setTimeout(() => this.#stream.destroy(), LAST_WORD_MS).unref()
    void this.#hearOut().finally(() => {
      clearTimeout(timer)
      this.#stream.destroy()
    })
  }

  /**
   * Waits for the answer to the farewell. Were the connection closed at once, a vsock that is reset by what the guest still sends would drop
   * what it has not read, the farewell among it.
   */
  async #hearOut(): Promise<void> {
    try {
      for (;;) {
        for (let frame = this.#decoded(); frame !== undefined; frame = this.#decoded())
          if (frame.kind === 'message' && LAST_ANSWERS.includes(frame.message.type)) return
        this.#next ??= this.#chunks.next()
        const chunk = await this.#next
        this.#next = undefined
        if (chunk.done) return
        this.#pending = this.#decoder.push(chunk.value)
      }
    } catch {
      // Nobody listens any more: whatever it was, the connection is closed now.
    }
  }

  #encoded(message: ToGuest): Buffer {
    try {
      return encodeMessage(message)
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      throw new BandSoxError('bad-request', `cannot ask the agent: ${error.message}`, { cause: error })
    }
  }

  /** Why it was given up. */
  get #leftBy(): unknown {
    return this.#failure ?? new BandSoxError('link-lost', 'the connection was given up')
  }

  /** What the read under way has brought. */
  #take(chunk: IteratorResult<Buffer>): void {
    if (this.#isLeaving) throw this.#leftBy
    this.#next = undefined
    if (chunk.done) this.#endOfStream()
    else this.#pending = this.#decoder.push(chunk.value)
  }

  #decoded(): FromGuest | undefined {
    try {
      const next = this.#pending.next()
      return next.done ? undefined : next.value
    } catch (error) {
      if (error instanceof ProtocolError) throw this.violation(`${error.violation}: ${error.message}`, error)
      throw error
    }
  }

  /** In the middle of a frame, too: so it looks when the VM has died, which is no fault of the guest's. */
  #endOfStream(): never {
    try {
      this.#decoder.end()
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.close()
      throw new BandSoxError('link-lost', `the connection to the guest ended in the middle: ${error.violation}`, {
        cause: error,
      })
    }
    this.close()
    throw new BandSoxError('link-lost', 'the guest closed the connection', { cause: this.#failure })
  }

  /** Waits at most `timeoutMs`; whatever cuts the wait short also ends the connection, since its state is then unknown. */
  async #bounded<T>(
    wait: Promise<T>,
    options: { signal?: AbortSignal | undefined; timeoutMs?: number; deadline?: number },
  ): Promise<T> {
    const { signal, timeoutMs = this.answerTimeoutMs } = options
    const leftMs = options.deadline === undefined ? timeoutMs : options.deadline - performance.now()
    let timer: NodeJS.Timeout | undefined
    let abort: (() => void) | undefined
    const cut = new Promise<never>((_, reject) => {
      if (signal?.aborted) return reject(signal.reason)
      abort = () => reject(signal?.reason)
      signal?.addEventListener('abort', abort, { once: true })
      if (timeoutMs === Number.POSITIVE_INFINITY) return
      timer = setTimeout(
        () =>
          reject(
            new BandSoxError('guest-silent', `the agent neither answered nor made progress within ${timeoutMs} ms`),
          ),
        Math.max(leftMs, 0),
      )
    })
    try {
      return await Promise.race([wait, cut])
    } catch (error) {
      this.close(error)
      // The first cause: a stream that was closed for a reason says no more than that it was closed.
      const cause = this.#failure
      if (cause instanceof BandSoxError || (signal?.aborted && cause === signal.reason)) throw cause
      throw new BandSoxError('link-lost', `the connection to the guest broke: ${messageOf(cause)}`, { cause })
    } finally {
      clearTimeout(timer)
      if (abort !== undefined) signal?.removeEventListener('abort', abort)
    }
  }
}

async function openWithin(link: Link, limit: AbortSignal, signal: AbortSignal | undefined): Promise<Socket> {
  try {
    return await link.open(signal === undefined ? limit : AbortSignal.any([signal, limit]))
  } catch (error) {
    if (error !== limit.reason) throw error
    throw new BandSoxError('guest-silent', `the ${link.kind} link did not answer the handshake in time`, {
      cause: error,
    })
  }
}

/** What another try, or another link, may cure. */
export const isLinkFailure = (error: unknown): boolean =>
  error instanceof BandSoxError &&
  !(error instanceof GuestFault) &&
  ['link-refused', 'link-lost', 'guest-silent'].includes(error.code)
