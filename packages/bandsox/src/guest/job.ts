/** A command in the guest: PROTOCOL.md sections 3 and 5, seen from the host. */
import { setTimeout as delay } from 'node:timers/promises'
import {
  BandSoxError,
  type CollectedOutput,
  type ExecOptions,
  type ExecResult,
  type Job,
  type LinkKind,
  messageOf,
  type OutputChunk,
  printableLine,
  type TerminalSize,
} from '@bandsox/sdk'
import { MAX_TERMINAL_SIDE, signalNames, type ToGuest } from '../wire/message.js'
import type { Agent, FindAgent } from './agent.js'
import { type FromGuest, type GuestConnection, isLinkFailure } from './connection.js'
import { isFrozen } from './guest-fault.js'
import { InputFeed } from './input-feed.js'
import { ATTACH_CAPABILITY, newOperationName } from './operation-name.js'
import { Pieces } from './pieces.js'
import { requireSnapshots } from './snapshots.js'

/** PROTOCOL.md section 5: how often output is acknowledged, at the latest. */
const ACKNOWLEDGE_BYTES = 262_144
/** How long a command waits in the guest for us to come back: longer than any way to another connection. */
const KEEP_MS = 20_000
/** A command that gets no further is given up after so many connections. */
const MAX_STALLS = 5
/** A signal sent so shortly before its connection broke, or after the last that was heard over it, may not have arrived, and is sent again. */
const UNSURE_SIGNAL_MS = 2_000
/** A connection that lasted so long was one, though a quiet command may have said nothing over it. */
const STABLE_MS = 2_000
/** A quiet command may be one whose link has fallen silent: after so long the guest is asked for a word. */
const QUIET_MS = 15_000
/** A guest whose processes stand still begins no command; while it answers so, that is over soon. */
const FROZEN_TRIES = 600
const FROZEN_PAUSE_MS = 50
/** How long the guest is looked for after an abort that came while there was no connection. */
const LATE_ABORT_MS = 5_000
const DEFAULT_MAX_OUTPUT_BYTES = 16 * 1024 * 1024
/** PROTOCOL.md section 3: an agent without it would run the command with pipes, and say nothing. */
const TERMINAL_CAPABILITY = 'pty'

export type ExecRequest = Omit<Extract<ToGuest, { type: 'exec' }>, 'type' | 'stdin' | 'job' | 'keepMs'>

type JobOptions = Pick<ExecOptions, 'input' | 'signal' | 'link'>

/**
 * Starts a command. Failures, such as a program that is not there, are thrown where its output or end is awaited.
 *
 * @param findAgent May fail, for instance because the sandbox does not run: also thrown there.
 */
export function startJob(findAgent: FindAgent, request: ExecRequest, options: JobOptions = {}): Job {
  return new GuestJob(findAgent, request, options)
}

interface AttachOptions extends Pick<ExecOptions, 'signal' | 'link'> {
  /** Whether it has a terminal, as `listGuestJobs` says: without one, `resize` is refused. Default false. */
  pty?: boolean
}

/**
 * Takes over a command that runs already, from the oldest output that the guest has kept of it. Whoever had it is left without. Unlike one
 * that was started here, it runs on when its output is not read to the end, or `signal` aborts.
 *
 * @param name As `listGuestJobs` has it.
 * @throws Where its output or end is awaited: `agent-incompatible`, `not-found` when the guest does not know it (any more).
 */
export function attachToJob(findAgent: FindAgent, name: string, options: AttachOptions = {}): Job {
  const { pty = false, ...others } = options
  return new GuestJob(findAgent, pty ? { pty: { cols: 1, rows: 1 } } : {}, others, name)
}

class GuestJob implements Job {
  readonly #findAgent: FindAgent
  readonly #request: ExecRequest
  readonly #input: InputFeed | undefined
  readonly #signal: AbortSignal | undefined
  readonly #only: LinkKind | undefined
  readonly #name: string
  /** Begun by somebody else, and left running by us. */
  readonly #isFound: boolean
  readonly #started: Promise<Agent>
  /** The present one; undefined before the start, and between one that broke and the next. */
  #connection: GuestConnection | undefined
  /** Bytes of output that have come. */
  #received = 0
  #acknowledged = 0
  /** What `kill` and `resize` have to say and no connection would carry yet. */
  #unsaid: ((connection: GuestConnection) => void)[] = []
  #lastSignal: { signal: string; at: number } | undefined
  /** When the guest was last heard over the present connection. */
  #heardAt = 0
  #attachedAt = performance.now()
  /** Asked over the present connection, and not answered. */
  #pings = 0
  #lastSize: TerminalSize | undefined
  /** The one reading of the connection: by the user through `output`, else by `wait`. */
  #reading = false
  /** The connection is not this command's any more. */
  #isOver = false
  #stopListening: () => void = () => undefined
  readonly #ended: Promise<ExecResult>
  #end!: { resolve: (result: ExecResult) => void; reject: (error: unknown) => void }

  /** @param found The name of a command that runs already: then `request` says no more than whether it has a terminal. */
  constructor(findAgent: FindAgent, request: ExecRequest, options: JobOptions, found?: string) {
    this.#name = found ?? newOperationName()
    this.#isFound = found !== undefined
    this.#findAgent = findAgent
    this.#request = request
    this.#signal = options.signal
    this.#only = options.link
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
    this.#whileRunning((connection) => {
      this.#lastSignal = { signal, at: performance.now() }
      connection.send({ type: 'signal', signal })
    })
  }

  resize(cols: number, rows: number): void {
    requireTerminalSize({ cols, rows })
    this.#whileRunning((connection) => {
      // Known only now: a request may be completed up to its start.
      if (this.#request.pty === undefined) {
        connection.close(new BandSoxError('bad-request', 'cannot resize the terminal of a command that has none'))
        return
      }
      this.#lastSize = { cols, rows }
      connection.send({ type: 'resize', cols, rows })
    })
  }

  #whileRunning(act: (connection: GuestConnection) => void): void {
    this.#started.then(
      () => {
        // Once over, the connection may carry another command, which a signal would reach.
        if (this.#isOver) return
        if (this.#connection?.isOpen) act(this.#connection)
        else this.#unsaid.push(act)
      },
      () => undefined, // it never started: `wait` and `output` say so
    )
  }

  async #start(): Promise<Agent> {
    let agent = await this.#findAgent(this.#signal)
    let connection = await agent.acquire({ signal: this.#signal, only: this.#only })
    let frozenTries = 0 // not the time: between two of them the machine may have stood still for long
    this.#listenForAbort(agent)
    for (let stalls = 1; ; stalls++) {
      this.#connection = connection
      try {
        await (this.#isFound ? this.#take(connection) : this.#ask(connection))
        return agent
      } catch (error) {
        this.#connection = undefined
        agent.lost(connection, error)
        try {
          if (isFrozen(error) && frozenTries++ < FROZEN_TRIES) {
            await delay(FROZEN_PAUSE_MS)
            agent = await this.#agentAgain(agent)
            connection = await agent.acquire({ signal: this.#signal, only: this.#only })
            stalls = 0
            continue
          }
          if (stalls > MAX_STALLS || !this.#mayGoOn(connection, error)) throw error
          // Under the name that it has: should the guest have begun it already, it does not begin again.
          const { bootId } = connection.hello
          connection = await agent.reconnect(error, { signal: this.#signal, only: this.#only, bootId, stalls })
        } catch (failure) {
          this.#stopListening()
          throw failure
        }
      }
    }
  }

  /** Whoever froze the machine may have been killed, or have it fall asleep, which the owner of the agent sees to. */
  async #agentAgain(before: Agent): Promise<Agent> {
    let agent: Agent
    try {
      agent = await this.#findAgent(this.#signal)
    } catch (error) {
      // Paused by now: the one that there was waits until it goes on.
      if (error instanceof BandSoxError && error.code === 'wrong-state') return before
      throw error
    }
    this.#stopListening()
    this.#listenForAbort(agent)
    return agent
  }

  async #ask(connection: GuestConnection): Promise<void> {
    if (this.#request.pty !== undefined) {
      requireTerminalSize(this.#request.pty)
      requireTerminals(connection)
    }
    connection.send({
      type: 'exec',
      ...this.#request,
      ...(this.#input !== undefined && { stdin: true }),
      ...(isAttachable(connection) && { job: this.#name, keepMs: KEEP_MS }),
    })
    // Where the end of the connection alone would leave it waiting for us.
    if (isAttachable(connection)) connection.farewell = { type: 'abort' }
    await connection.receiveMessage('started', { signal: this.#signal, about: `run ${this.#called}` })
  }

  /** Takes a command that runs, as far back as there is output of it. */
  async #take(connection: GuestConnection): Promise<void> {
    requireSnapshots(connection)
    connection.send({ type: 'attach', job: this.#name })
    const { offset } = await connection.receiveMessage('attached', {
      signal: this.#signal,
      about: `attach to ${this.#called}`,
    })
    this.#received = offset
    this.#acknowledged = offset
  }

  /** Also kills a command whose output nobody reads at that moment. */
  #listenForAbort(agent: Agent): void {
    const signal = this.#signal
    const abort = () => {
      this.#end.reject(signal?.reason)
      this.#giveUp(agent, signal?.reason)
    }
    signal?.addEventListener('abort', abort, { once: true })
    this.#stopListening = () => signal?.removeEventListener('abort', abort)
  }

  /** Makes the agent kill the command. */
  #giveUp(agent: Agent, reason?: unknown): void {
    const connection = this.#connection
    this.#connection = undefined
    if (connection !== undefined) agent.discard(connection, reason)
  }

  async *#read(): AsyncGenerator<OutputChunk, void> {
    if (this.#reading)
      throw new BandSoxError('internal', 'the output of a command has one reader, and it is being read already')
    this.#reading = true
    const agent = await this.#started
    let connection = this.#present()
    this.#feed(connection)
    let result: ExecResult | undefined
    let stalls = 0
    try {
      while (result === undefined) {
        let frame: FromGuest
        try {
          frame = await this.#receive(connection)
        } catch (error) {
          if (performance.now() - this.#attachedAt > STABLE_MS) stalls = 0
          connection = await this.#comeBack(agent, connection, error, stalls++)
          continue
        }
        this.#heardAt = performance.now()
        if (frame.kind === 'message' && frame.message.type === 'pong' && this.#pings > 0) {
          this.#pings--
          continue
        }
        if (frame.kind === 'stdout' || frame.kind === 'stderr') {
          stalls = 0
          this.#received += frame.data.length
          yield { stream: frame.kind, data: frame.data }
          connection = await this.#acknowledge(agent, connection)
        } else if (frame.kind === 'message' && frame.message.type === 'ack' && this.#isFound) {
          // Of input that it had from somebody else.
        } else if (frame.kind === 'message' && frame.message.type === 'ack' && this.#input !== undefined) {
          const before = this.#input.acknowledged
          if (!this.#input.acknowledge(frame.message.offset))
            throw connection.violation('it acknowledged input that was not sent')
          if (this.#input.acknowledged > before) stalls = 0 // one that says nothing new is no step further
        } else if (frame.kind === 'message' && frame.message.type === 'exit') {
          const { code, signal, timedOut } = frame.message
          result = {
            exitCode: code ?? null,
            signal: signal ?? null,
            timedOut: timedOut ?? false,
            link: connection.link,
          }
        } else throw connection.unexpected(frame, `run ${this.#called}`)
      }
      this.#isOver = true
      this.#stopListening()
      this.#input?.stop()
      connection.farewell = undefined
      // What it was asked, and has not answered yet, would come into the next operation.
      if (this.#pings > 0) agent.discard(connection)
      else agent.release(connection)
      this.#end.resolve(result)
    } catch (error) {
      this.#end.reject(error)
      throw error
    } finally {
      // Left early, by `break` or an error.
      if (result === undefined) {
        this.#isOver = true
        this.#stopListening()
        this.#input?.stop()
        this.#giveUp(agent)
        const became = this.#isFound ? 'runs on alone' : 'was killed'
        this.#end.reject(new BandSoxError('cancelled', `the output was not read to its end, so the command ${became}`))
      }
    }
  }

  /** Sends the input as long as there is somebody to read it. What the source fails by ends the job. */
  #feed(connection: GuestConnection): void {
    if (this.#input === undefined) return
    this.#input.attach(connection, 0)
    this.#input.run().catch((error: unknown) => {
      if (this.#isOver) return
      const message = `the command's input could not be read, so it was killed: ${messageOf(error)}`
      const failure = new BandSoxError('cancelled', message, { cause: error })
      this.#whileRunning((present) => present.close(failure)) // what broke the connection itself was there first
    })
  }

  /** A command may be quiet for as long as it likes, but not its link: where the agent can be asked, it is, from time to time. */
  async #receive(connection: GuestConnection): Promise<FromGuest> {
    if (!isAttachable(connection))
      return await connection.receive({ signal: this.#signal, timeoutMs: this.#silenceMs(connection) })
    const quietMs = Math.min(QUIET_MS, connection.answerTimeoutMs)
    const ask = setTimeout(() => {
      this.#pings++
      if (connection.isOpen) connection.send({ type: 'ping' })
    }, quietMs).unref()
    try {
      return await connection.receive({ signal: this.#signal, timeoutMs: quietMs + connection.answerTimeoutMs })
    } finally {
      clearTimeout(ask)
    }
  }

  /** Says how much output has come, from time to time; a slow link is left then, when a better one works again. */
  async #acknowledge(agent: Agent, connection: GuestConnection): Promise<GuestConnection> {
    if (this.#received - this.#acknowledged < ACKNOWLEDGE_BYTES || !isAttachable(connection)) return connection
    if (!connection.isOpen) return connection // the next reading finds out why
    this.#acknowledged = this.#received
    connection.send({ type: 'ack', offset: this.#received })
    try {
      agent.changeToBetterLink(connection, this.#only, ATTACH_CAPABILITY)
      return connection
    } catch (change) {
      return await this.#comeBack(agent, connection, change, 0)
    }
  }

  /**
   * Attaches to the command over another connection.
   *
   * @throws `broken`, when there is no way back to it.
   */
  async #comeBack(
    agent: Agent,
    lost: GuestConnection,
    broken: unknown,
    stallsBefore: number,
  ): Promise<GuestConnection> {
    const { bootId } = lost.hello
    this.#connection = undefined
    this.#pings = 0
    this.#input?.detach()
    agent.lost(lost, broken)
    if (!this.#mayGoOn(lost, broken)) throw broken
    const abort = () => {
      if (!this.#isFound) void this.#abortLater(agent)
    }
    this.#signal?.addEventListener('abort', abort, { once: true })
    try {
      return await this.#attach(agent, broken, bootId, stallsBefore)
    } finally {
      this.#signal?.removeEventListener('abort', abort)
    }
  }

  async #attach(agent: Agent, broken: unknown, bootId: string, stallsBefore: number): Promise<GuestConnection> {
    for (let stalls = stallsBefore; stalls <= MAX_STALLS; stalls++) {
      const connection = await agent.reconnect(broken, { signal: this.#signal, only: this.#only, bootId, stalls })
      try {
        connection.send({ type: 'attach', job: this.#name, offset: this.#received })
        if (!this.#isFound) connection.farewell = { type: 'abort' }
        const { offset, inputOffset } = await connection.receiveMessage('attached', {
          signal: this.#signal,
          about: `come back to ${this.#called}`,
        })
        if (offset !== this.#received) throw connection.violation('it attached at another offset than was asked for')
        if (!this.#isFound && !(this.#input?.attach(connection, inputOffset) ?? inputOffset === 0))
          throw connection.violation('it has input that was not sent')
        this.#resume(connection)
        return connection
      } catch (error) {
        agent.lost(connection, error)
        this.#signal?.throwIfAborted()
        if (isLinkFailure(error)) continue
        // The guest has ended it meanwhile, or it is ending itself: what broke the connection says more.
        throw error instanceof BandSoxError && error.code === 'guest-protocol' ? error : broken
      }
    }
    throw broken
  }

  /** An abort while there is no connection: the guest would wait for us, so it is told over the next one. */
  async #abortLater(agent: Agent): Promise<void> {
    try {
      const signal = AbortSignal.timeout(LATE_ABORT_MS)
      const connection = await agent.acquire({ signal, only: this.#only })
      connection.send({ type: 'attach', job: this.#name, offset: this.#received })
      connection.farewell = { type: 'abort' }
      await connection.receiveMessage('attached', { signal })
      agent.discard(connection)
    } catch {
      // Nobody waits for this, and without it the guest ends the command by itself, a little later.
    }
  }

  #mayGoOn(connection: GuestConnection, error: unknown): boolean {
    return isLinkFailure(error) && isAttachable(connection) && !this.#isOver && this.#signal?.aborted !== true
  }

  /** Says what was said in vain, or may have been. */
  #resume(connection: GuestConnection): void {
    this.#connection = connection
    this.#attachedAt = performance.now()
    this.#acknowledged = this.#received
    const unsure = this.#lastSignal
    if (unsure !== undefined && (performance.now() - unsure.at < UNSURE_SIGNAL_MS || unsure.at > this.#heardAt))
      connection.send({ type: 'signal', signal: unsure.signal })
    if (this.#lastSize !== undefined) connection.send({ type: 'resize', ...this.#lastSize })
    for (const act of this.#unsaid.splice(0)) act(connection)
  }

  get #called(): string {
    return this.#isFound ? `the command ${this.#name}` : commandName(this.#request)
  }

  #present(): GuestConnection {
    if (this.#connection === undefined)
      throw this.#signal?.reason ?? new BandSoxError('link-lost', 'the command was given up')
    return this.#connection
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

const isAttachable = ({ hello }: GuestConnection): boolean => hello.capabilities.includes(ATTACH_CAPABILITY)

function requireTerminals({ hello }: GuestConnection): void {
  if (hello.capabilities.includes(TERMINAL_CAPABILITY)) return
  throw new BandSoxError('agent-incompatible', `the agent ${printableLine(hello.agent)} has no terminals to give`)
}

function requireTerminalSize({ cols, rows }: TerminalSize): void {
  const isGood = (side: number) => Number.isInteger(side) && side >= 1 && side <= MAX_TERMINAL_SIDE
  if (isGood(cols) && isGood(rows)) return
  throw new BandSoxError('bad-request', `cannot make a terminal ${cols} × ${rows}: 1 to ${MAX_TERMINAL_SIDE} each`)
}

const commandName = ({ argv, tool }: ExecRequest): string =>
  argv?.[0] ?? (tool === undefined ? 'a shell command' : `the agent's ${tool[0]}`)
