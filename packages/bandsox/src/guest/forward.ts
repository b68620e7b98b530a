/** One TCP connection of the host, passed on to one in the guest: PROTOCOL.md section 6, seen from the host. */
import type { Socket } from 'node:net'
import { BandSoxError, messageOf, printableLine } from '@bandsox/sdk'
import type { Agent } from './agent.js'
import type { GuestConnection } from './connection.js'
import { Pieces } from './pieces.js'

/** PROTOCOL.md section 6: bytes that each side may have on their way. */
const WINDOW_BYTES = 131_072
const ACK_EVERY_BYTES = WINDOW_BYTES / 4
const CHUNK_BYTES = 65_536
/** The guest gives its connection this long, and then some words. */
const CONNECT_TIMEOUT_MS = 10_000
const CAPABILITY = 'connect'

export interface ForwardTarget {
  port: number
  /** A name or an address that the guest resolves. Default: its own 127.0.0.1. */
  host?: string | undefined
}

/**
 * Passes bytes both ways until both sides have ended; each side's end is passed on as one.
 *
 * @param socket Must keep half-closes (`allowHalfOpen`). Whatever fails resets it: who is behind it can tell that from an end.
 * @throws `link-refused` when nobody listens in the guest, `link-lost` when a side broke, `cancelled` when the client did,
 *   `agent-incompatible`, `signal.reason`.
 */
export async function forwardConnection(
  agent: Agent,
  socket: Socket,
  target: ForwardTarget,
  signal?: AbortSignal,
): Promise<void> {
  // One of its own for each connection: what listens to it is gone with it, however long the caller's signal lives.
  const end = new AbortController()
  const pass = () => end.abort(signal?.reason)
  const onClose = () => {
    // Both sides have ended in order, and what the client sent last may still wait here for the guest to take it.
    if (socket.readableEnded && socket.writableFinished) return
    end.abort(new BandSoxError('cancelled', 'the client closed its connection'))
  }
  signal?.addEventListener('abort', pass, { once: true })
  socket.once('close', onClose)
  if (signal?.aborted) pass()
  if (socket.destroyed) onClose()
  let connection: GuestConnection | undefined
  try {
    connection = await connectInGuest(agent, target, end.signal)
    await new Tunnel(connection, socket, end).run()
    agent.release(connection)
  } catch (error) {
    if (connection !== undefined) agent.lost(connection, error)
    resetSocket(socket)
    throw error
  } finally {
    socket.off('close', onClose)
    signal?.removeEventListener('abort', pass)
  }
}

/** Goes on over another connection to the guest when one breaks: the client's bytes still wait here, and none has been passed on. */
async function connectInGuest(agent: Agent, target: ForwardTarget, signal: AbortSignal): Promise<GuestConnection> {
  let connection = await agent.acquire({ signal })
  const { bootId } = connection.hello
  for (let stalls = 1; ; stalls++) {
    try {
      requireForwarding(connection)
      connection.send({ type: 'connect', port: target.port, ...(target.host !== undefined && { host: target.host }) })
      await connection.receiveMessage('connected', {
        signal,
        timeoutMs: CONNECT_TIMEOUT_MS + connection.answerTimeoutMs,
        about: `connect to port ${target.port}`,
      })
      return connection
    } catch (error) {
      agent.lost(connection, error)
      signal.throwIfAborted()
      if (!(error instanceof BandSoxError && error.code === 'link-lost')) throw error
      connection = await agent.reconnect(error, { signal, bootId, stalls })
    }
  }
}

/** libuv refuses to reset a socket whose end is on its way, and Node then never closes it (seen with 20.20). */
export function resetSocket(socket: Socket): void {
  if (socket.writableEnded) socket.destroy()
  else socket.resetAndDestroy()
}

function requireForwarding({ hello }: GuestConnection): void {
  if (hello.capabilities.includes(CAPABILITY)) return
  throw new BandSoxError('agent-incompatible', `the agent ${printableLine(hello.agent)} cannot forward connections`)
}

/** Two directions that do not wait for each other. */
class Tunnel {
  readonly #connection: GuestConnection
  readonly #socket: Socket
  /** Aborted by the caller, by the client's end, and by the first direction that fails. */
  readonly #end: AbortController
  #sent = 0
  #acknowledged = 0
  #hostEnded = false
  #hostEndAcknowledged = false
  #guestEnded = false
  #creditArrived: () => void = () => undefined
  #received = 0
  /** What waits for the write that is under way, so that the guest's choice of frames does not decide how much memory it takes. */
  readonly #waiting = new Pieces()
  #isWriting = false
  /** Taken by the client's side, and how much of it the guest knows of. */
  #delivered = 0
  #told = 0
  /** The connection is not this tunnel's any more. */
  #isOver = false

  constructor(connection: GuestConnection, socket: Socket, end: AbortController) {
    this.#connection = connection
    this.#socket = socket
    this.#end = end
  }

  async run(): Promise<void> {
    const { signal } = this.#end
    const wakeAll = () => {
      resetSocket(this.#socket)
      this.#creditArrived()
    }
    signal.addEventListener('abort', wakeAll, { once: true })
    if (signal.aborted) wakeAll()
    // The first reason is the one that is kept. What comes from the socket itself is the client's.
    const fail = (error: unknown) =>
      this.#end.abort(
        error instanceof BandSoxError
          ? error
          : new BandSoxError('cancelled', `the client broke its connection: ${messageOf(error)}`, { cause: error }),
      )
    await Promise.all([this.#toGuest().catch(fail), this.#fromGuest().catch(fail)])
    this.#isOver = true
    signal.removeEventListener('abort', wakeAll)
    signal.throwIfAborted()
  }

  async #toGuest(): Promise<void> {
    const { signal } = this.#end
    // Not destroyed at its end, as a plain loop would do it: the other direction goes on.
    for await (const chunk of this.#socket.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
      for (let offset = 0; offset < chunk.length; ) {
        const room = WINDOW_BYTES - (this.#sent - this.#acknowledged)
        if (room === 0) {
          await new Promise<void>((resolve) => {
            this.#creditArrived = resolve
          })
          signal.throwIfAborted()
          continue
        }
        const piece = chunk.subarray(offset, offset + room)
        offset += piece.length
        this.#sent += piece.length
        await this.#connection.sendData(piece, CHUNK_BYTES, signal)
      }
    }
    signal.throwIfAborted()
    this.#hostEnded = true
    this.#connection.send({ type: 'eof' })
  }

  async #fromGuest(): Promise<void> {
    const connection = this.#connection
    while (!this.#guestEnded || !this.#hostEndAcknowledged) {
      const frame = await connection.receive({ signal: this.#end.signal, timeoutMs: Number.POSITIVE_INFINITY })
      if (frame.kind === 'data') this.#deliver(frame.data)
      else if (frame.kind === 'message' && frame.message.type === 'ack') this.#acknowledge(frame.message.offset)
      else if (frame.kind === 'message' && frame.message.type === 'eof') {
        if (this.#guestEnded) throw connection.violation('it ended a forwarded connection twice')
        this.#guestEnded = true
        this.#endClient()
      } else throw connection.unexpected(frame, 'a forwarded connection')
    }
  }

  #deliver(data: Buffer): void {
    this.#received += data.length
    if (this.#guestEnded) throw this.#connection.violation('it sent data behind the end of a forwarded connection')
    if (this.#received - this.#told > WINDOW_BYTES)
      throw this.#connection.violation(`it sent more than ${WINDOW_BYTES} bytes that were not acknowledged`)
    this.#waiting.add(data)
    if (!this.#isWriting) this.#write()
  }

  #write(): void {
    const pieces = this.#waiting.take()
    const data = pieces.length === 1 && pieces[0] !== undefined ? pieces[0] : Buffer.concat(pieces)
    this.#isWriting = true
    this.#socket.write(data, (error) => {
      if (error) return // a socket that fails is closed, which is heard elsewhere
      this.#isWriting = false
      this.#delivered += data.length
      if (this.#delivered < this.#received) this.#write()
      else if (this.#guestEnded) this.#endClient()
      if (this.#isOver) return
      if (this.#delivered - this.#told < ACK_EVERY_BYTES || this.#end.signal.aborted) return
      this.#told = this.#delivered
      this.#connection.send({ type: 'ack', offset: this.#told })
    })
  }

  /** Only once all is with the kernel: from then on a reset would not be one any more, and need not be. */
  #endClient(): void {
    if (this.#delivered === this.#received) this.#socket.end()
  }

  /** All that was sent is acknowledged only in answer to our `eof`, so that the last word is the guest's. */
  #acknowledge(offset: number): void {
    const isEverything = offset === this.#sent
    if (offset < this.#acknowledged || offset > this.#sent || (isEverything && !this.#hostEnded))
      throw this.#connection.violation('it acknowledged bytes of a forwarded connection that were not sent')
    this.#acknowledged = offset
    this.#hostEndAcknowledged = isEverything
    this.#creditArrived()
  }
}
