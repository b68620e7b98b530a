/**
 * One HTTP connection to Firecracker's API socket, made when it is needed and kept for the calls that follow.
 *
 * Firecracker serves all its connections by one thread, one call after the other, and accepts ten of them at most. So one is
 * enough, and it is not kept long when nobody has anything to say: other processes may want to speak with the same machine.
 */
import { isSystemError, messageOf } from '@bandsox/sdk'
import { Client, type Dispatcher } from 'undici'
import { connectForeignSocket } from '../../../process/unix-socket.js'
import { type ApiCall, FirecrackerNoAnswer } from './fault.js'

/** Without a call, in milliseconds. A machine that starts is called many times within some of them. */
const KEEP_ALIVE_MS = 4_000
/** Firecracker sends some 150. */
const MAX_HEADER_BYTES = 8 * 1024

export interface ApiAnswer {
  status: number
  body: string
}

export class ApiConnection {
  readonly #socketPath: string
  readonly #client: Client
  /** How often a connection was made. */
  #made = 0

  /** @param socketPath As for `connectForeignSocket`. */
  constructor(socketPath: string) {
    this.#socketPath = socketPath
    this.#client = new Client('http://localhost', {
      connect: (_, done) => {
        connectForeignSocket(socketPath).then(
          (socket) => {
            this.#made++
            done(null, socket)
          },
          (error: unknown) => done(new CannotConnect(messageOf(error), { cause: error }), null),
        )
      },
      keepAliveTimeout: KEEP_ALIVE_MS,
      maxHeaderSize: MAX_HEADER_BYTES,
      // The caller's signal is the only limit: these would count from each piece anew.
      headersTimeout: 0,
      bodyTimeout: 0,
    })
  }

  /**
   * Not to be called again before the answer is there.
   *
   * A GET is sent once more when its connection had served before and ended without a word: then Firecracker had closed it, or had
   * gone away, while nobody used it. Nothing else is: for what asks for a change, only the caller can find out whether it came about.
   *
   * @param body JSON.
   * @param maxBytes Of the answer's body.
   * @throws {@link FirecrackerNoAnswer}; `signal.reason`, which closes the connection.
   */
  async send(call: ApiCall, body: string | undefined, maxBytes: number, signal: AbortSignal): Promise<ApiAnswer> {
    const before = this.#made
    try {
      return await this.#sendOnce(call, body, maxBytes, signal)
    } catch (error) {
      const isKept = before > 0 && this.#made === before
      const isUnanswered =
        error instanceof FirecrackerNoAnswer && error.reason === 'broken' && error.status === undefined
      if (call.method !== 'GET' || !isKept || !isUnanswered) throw error
      return await this.#sendOnce(call, body, maxBytes, signal)
    }
  }

  /** Breaks off what is under way. */
  async close(): Promise<void> {
    await this.#client.destroy()
  }

  async #sendOnce(call: ApiCall, body: string | undefined, maxBytes: number, signal: AbortSignal): Promise<ApiAnswer> {
    signal.throwIfAborted()
    let status: number | undefined
    try {
      const reply = await this.#client.request({
        method: call.method,
        path: call.path,
        headers: {
          accept: 'application/json',
          ...(body !== undefined && { 'content-type': 'application/json' }),
        },
        body: body ?? null,
        signal,
      })
      // Reading meets its error; between here and there, one without a listener would end the process.
      reply.body.on('error', () => undefined)
      status = reply.statusCode
      return { status, body: await readText(reply.body, maxBytes) }
    } catch (error) {
      signal.throwIfAborted()
      throw this.#noAnswer(call, error, status)
    }
  }

  #noAnswer(call: ApiCall, error: unknown, status: number | undefined): FirecrackerNoAnswer {
    if (error instanceof CannotConnect) {
      const why = `${unreachableBecause(error.cause)} at its socket ${this.#socketPath}`
      return new FirecrackerNoAnswer('unreachable', call, why, { cause: error.cause, mayHaveTakenEffect: false })
    }
    const options = { cause: error, status }
    if (error instanceof TooLarge) return new FirecrackerNoAnswer('unintelligible', call, error.message, options)
    const text = messageOf(error)
    const code = error instanceof Error && 'code' in error ? String(error.code) : ''
    if (NO_HTTP.test(code)) return new FirecrackerNoAnswer('unintelligible', call, `it is no HTTP (${text})`, options)
    if (status !== undefined) {
      const why = `the connection ended in the middle of one with status ${status} (${text})`
      return new FirecrackerNoAnswer('broken', call, why, options)
    }
    // It closed its end before it had read the call to its end, without which it cannot have acted on it.
    if (code === 'EPIPE') {
      const why = `the connection ended before the call was taken in (${text})`
      return new FirecrackerNoAnswer('broken', call, why, { ...options, mayHaveTakenEffect: false })
    }
    return new FirecrackerNoAnswer('broken', call, `the connection ended before one (${text})`, options)
  }
}

class CannotConnect extends Error {}

class TooLarge extends Error {}

/** Codes of undici and of its parser. */
const NO_HTTP = /^(HPE_|UND_ERR_HEADERS_OVERFLOW$)/

function unreachableBecause(error: unknown): string {
  if (isSystemError(error, 'ENOENT')) return 'there is nothing'
  if (isSystemError(error, 'ECONNREFUSED')) return 'nobody listens'
  if (isSystemError(error, 'EAGAIN')) return 'too many connections wait already'
  return `cannot connect (${messageOf(error)})`
}

async function readText(body: Dispatcher.ResponseData['body'], maxBytes: number): Promise<string> {
  const chunks: Buffer[] = []
  let size = 0
  // Leaving the loop early closes the connection, unless all of the answer has arrived already.
  for await (const chunk of body as AsyncIterable<Buffer>) {
    size += chunk.length
    if (size > maxBytes) throw new TooLarge(`it is more than ${maxBytes} bytes long`)
    chunks.push(chunk)
  }
  return Buffer.concat(chunks, size).toString()
}
