/** A command in the guest: PROTOCOL.md section 3, seen from the host. */
import {
  BandSoxError,
  type CollectedOutput,
  type ExecOptions,
  type ExecResult,
  type Job,
  messageOf,
  type OutputChunk,
  printableLine,
  type TerminalSize,
} from '@bandsox/sdk'
import { MAX_TERMINAL_SIDE, signalNames, type ToGuest } from '../wire/message.js'
import type { Agent } from './agent.js'
import type { GuestConnection } from './connection.js'
import { Pieces } from './pieces.js'

/** PROTOCOL.md section 3: input that the host may have on its way. */
const INPUT_WINDOW_BYTES = 262_144
const INPUT_CHUNK_BYTES = 65_536
const DEFAULT_MAX_OUTPUT_BYTES = 16 * 1024 * 1024
/** PROTOCOL.md section 3: an agent without it would run the command with pipes, and say nothing. */
const TERMINAL_CAPABILITY = 'pty'

export type ExecRequest = Omit<Extract<ToGuest, { type: 'exec' }>, 'type' | 'stdin'>

/**
 * Starts a command. Failures, such as a program that is not there, are thrown where its output or end is awaited.
 *
 * @param findAgent May fail, for instance because the sandbox does not run: also thrown there.
 */
export function startJob(
  findAgent: () => Promise<Agent>,
  request: ExecRequest,
  options: Pick<ExecOptions, 'input' | 'signal'> = {},
): Job {
  return new GuestJob(findAgent, request, options)
}

class GuestJob implements Job {
  readonly #findAgent: () => Promise<Agent>
  readonly #request: ExecRequest
  readonly #input: InputFeed | undefined
  readonly #signal: AbortSignal | undefined
  readonly #started: Promise<{ agent: Agent; connection: GuestConnection }>
  /** The one reading of the connection: by the user through `output`, else by `wait`. */
  #reading = false
  /** The connection is not this command's any more. */
  #isOver = false
  #stopListening: () => void = () => undefined
  readonly #ended: Promise<ExecResult>
  #end!: { resolve: (result: ExecResult) => void; reject: (error: unknown) => void }

  constructor(findAgent: () => Promise<Agent>, request: ExecRequest, options: Pick<ExecOptions, 'input' | 'signal'>) {
    this.#findAgent = findAgent
    this.#request = request
    this.#signal = options.signal
    this.#input = options.input === undefined ? undefined : new InputFeed(options.input)
    this.#ended = new Promise((resolve, reject) => {
      this.#end = { resolve, reject }
    })
    this.#started = this.#start()
    // Both are awaited by `wait` and `output`; a job that is dropped must not end the process by an unhandled rejection.
    this.#ended.catch(() => undefined)
    this.#started.catch((error: unknown) => this.#end.reject(error))
  }

  get output(): AsyncIterable<OutputChunk> {
    return { [Symbol.asyncIterator]: () => this.#read() }
  }

  async wait(): Promise<ExecResult> {
    if (!this.#reading) {
      for await (const _ of this.#read()) {
        // Thrown away on purpose: nobody asked for it, and an unread output would stop the command.
      }
    }
    return await this.#ended
  }

  async collect(options: { maxOutputBytes?: number } = {}): Promise<CollectedOutput> {
    const { maxOutputBytes = DEFAULT_MAX_OUTPUT_BYTES } = options
    const parts: Record<OutputChunk['stream'], Pieces> = { stdout: new Pieces(), stderr: new Pieces() }
    let size = 0
    for await (const { stream, data } of this.output) {
      size += data.length
      if (size > maxOutputBytes) {
        throw new BandSoxError(
          'output-too-large',
          `the command printed more than ${maxOutputBytes} bytes, and was killed`,
        )
      }
      parts[stream].add(Buffer.from(data.buffer, data.byteOffset, data.byteLength))
    }
    const result = await this.#ended
    const text = (pieces: Pieces) => Buffer.concat(pieces.take()).toString()
    return { ...result, stdout: text(parts.stdout), stderr: text(parts.stderr) }
  }

  kill(signal = 'SIGTERM'): void {
    if (!signalNames.includes(signal))
      throw new BandSoxError('bad-request', `cannot kill with ${JSON.stringify(signal)}: there is no such signal`)
    this.#whileRunning((connection) => connection.send({ type: 'signal', signal }))
  }

  resize(cols: number, rows: number): void {
    requireTerminalSize({ cols, rows })
    this.#whileRunning((connection) => {
      // Known only now: a request may be completed up to its start.
      if (this.#request.pty !== undefined) connection.send({ type: 'resize', cols, rows })
      else connection.close(new BandSoxError('bad-request', 'cannot resize the terminal of a command that has none'))
    })
  }

  #whileRunning(act: (connection: GuestConnection) => void): void {
    this.#started.then(
      ({ connection }) => {
        // Once over, the connection may carry another command, which a signal would reach.
        if (!this.#isOver && connection.isOpen) act(connection)
      },
      () => undefined, // it never started: `wait` and `output` say so
    )
  }

  async #start(): Promise<{ agent: Agent; connection: GuestConnection }> {
    const agent = await this.#findAgent()
    const connection = await agent.acquire(this.#signal)
    this.#listenForAbort(agent, connection)
    try {
      if (this.#request.pty !== undefined) {
        requireTerminalSize(this.#request.pty)
        requireTerminals(connection)
      }
      connection.send({ type: 'exec', ...this.#request, ...(this.#input !== undefined && { stdin: true }) })
      await connection.receiveMessage('started', { signal: this.#signal, about: `run ${commandName(this.#request)}` })
      return { agent, connection }
    } catch (error) {
      this.#stopListening()
      agent.discard(connection, error)
      throw error
    }
  }

  /** Also kills a command whose output nobody reads at that moment. */
  #listenForAbort(agent: Agent, connection: GuestConnection): void {
    const signal = this.#signal
    const abort = () => {
      this.#end.reject(signal?.reason)
      agent.discard(connection, signal?.reason)
    }
    signal?.addEventListener('abort', abort, { once: true })
    this.#stopListening = () => signal?.removeEventListener('abort', abort)
  }

  async *#read(): AsyncGenerator<OutputChunk, void> {
    if (this.#reading)
      throw new BandSoxError('internal', 'the output of a command has one reader, and it is being read already')
    this.#reading = true
    const { agent, connection } = await this.#started
    void this.#input?.run(connection, this.#signal)
    let result: ExecResult | undefined
    try {
      while (result === undefined) {
        const frame = await connection.receive({ signal: this.#signal, timeoutMs: this.#silenceMs(connection) })
        if (frame.kind === 'stdout' || frame.kind === 'stderr') yield { stream: frame.kind, data: frame.data }
        else if (frame.kind === 'message' && frame.message.type === 'ack' && this.#input !== undefined) {
          if (!this.#input.acknowledge(frame.message.offset))
            throw connection.violation('it acknowledged input that was not sent')
        } else if (frame.kind === 'message' && frame.message.type === 'exit') {
          const { code, signal, timedOut } = frame.message
          result = {
            exitCode: code ?? null,
            signal: signal ?? null,
            timedOut: timedOut ?? false,
            link: connection.link,
          }
        } else throw connection.unexpected(frame, `run ${commandName(this.#request)}`)
      }
      this.#isOver = true
      this.#stopListening()
      this.#input?.stop()
      agent.release(connection)
      this.#end.resolve(result)
    } catch (error) {
      this.#end.reject(error)
      throw error
    } finally {
      // Left early, by `break` or an error: the closed connection makes the agent kill the process group.
      if (result === undefined) {
        this.#isOver = true
        this.#stopListening()
        this.#input?.stop()
        agent.discard(connection)
        this.#end.reject(new BandSoxError('cancelled', 'the output was not read to its end, so the command was killed'))
      }
    }
  }

  /** A command may be silent as long as it likes, unless the guest promised to end it. */
  #silenceMs(connection: GuestConnection): number {
    const { timeoutMs } = this.#request
    // No timer lasts longer than 2^31-1 ms: a longer one would strike at once.
    return timeoutMs === undefined
      ? Number.POSITIVE_INFINITY
      : Math.min(timeoutMs + connection.answerTimeoutMs, 2 ** 31 - 1)
  }
}

function requireTerminals({ hello }: GuestConnection): void {
  if (hello.capabilities.includes(TERMINAL_CAPABILITY)) return
  throw new BandSoxError('agent-incompatible', `the agent ${printableLine(hello.agent)} has no terminals to give`)
}

function requireTerminalSize({ cols, rows }: TerminalSize): void {
  const isGood = (side: number) => Number.isInteger(side) && side >= 1 && side <= MAX_TERMINAL_SIDE
  if (isGood(cols) && isGood(rows)) return
  throw new BandSoxError('bad-request', `cannot make a terminal ${cols} × ${rows}: 1 to ${MAX_TERMINAL_SIDE} each`)
}

const commandName = (request: ExecRequest): string => request.argv?.[0] ?? 'a shell command'

/** Sends standard input at the pace at which the command takes it. */
class InputFeed {
  readonly #source: AsyncIterable<Uint8Array>
  #sent = 0
  #acknowledged = 0
  #stopped = false
  #creditArrived: () => void = () => undefined

  constructor(input: string | AsyncIterable<Uint8Array>) {
    this.#source = typeof input === 'string' ? once(Buffer.from(input)) : input
  }

  /**
   * Sends until the source ends or nobody needs it any more. Nobody waits for this: a source may be a person's keyboard,
   * and a command that has ended must not wait for the next key. A source that fails closes the connection, and so ends
   * the job with its reason.
   */
  async run(connection: GuestConnection, signal: AbortSignal | undefined): Promise<void> {
    try {
      for await (const { buffer, byteOffset, byteLength } of this.#source) {
        await this.#send(connection, Buffer.from(buffer, byteOffset, byteLength), signal)
        if (this.#stopped) return
      }
      if (!this.#stopped) connection.send({ type: 'eof' })
    } catch (error) {
      if (this.#stopped) return
      const message = `the command's input could not be read, so it was killed: ${messageOf(error)}`
      connection.close(new BandSoxError('cancelled', message, { cause: error })) // what broke the connection itself was there first
    }
  }

  /** @returns False for an offset that goes back or beyond what was sent. */
  acknowledge(offset: number): boolean {
    if (offset < this.#acknowledged || offset > this.#sent) return false
    this.#acknowledged = offset
    this.#creditArrived()
    return true
  }

  stop(): void {
    this.#stopped = true
    this.#creditArrived()
  }

  async #send(connection: GuestConnection, data: Buffer, signal: AbortSignal | undefined): Promise<void> {
    let offset = 0
    while (offset < data.length && !this.#stopped) {
      const room = INPUT_WINDOW_BYTES - (this.#sent - this.#acknowledged)
      if (room === 0) {
        await new Promise<void>((resolve) => {
          this.#creditArrived = resolve
        })
        continue
      }
      const piece = data.subarray(offset, offset + room)
      offset += piece.length
      this.#sent += piece.length
      await connection.sendData(piece, INPUT_CHUNK_BYTES, signal)
    }
  }
}

async function* once(data: Uint8Array): AsyncGenerator<Uint8Array> {
  if (data.length > 0) yield data
}
