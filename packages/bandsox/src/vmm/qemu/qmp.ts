/** A client of the QEMU Machine Protocol (docs/interop/qmp-spec). One client at a time is served: connect, ask, close. */
import type { Socket } from 'node:net'
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { z } from 'zod'
import { within } from '../../process/deadline.js'
import { lines } from '../../process/lines.js'
import { connectUnixSocket } from '../../process/unix-socket.js'

/** QEMU answers the commands that we use at once; while another client is connected, we wait in its backlog. */
const COMMAND_TIMEOUT_MS = 10_000
/** `query-*` answers stay far below; a QEMU that a guest has taken over might send anything. */
const MAX_LINE_BYTES = 1_048_576

const answerSchema = z.union([
  z.object({ return: z.unknown() }),
  z.object({ error: z.object({ class: z.string(), desc: z.string() }) }),
])
const greetingSchema = z.object({ QMP: z.object({}) })
const eventSchema = z.object({ event: z.string() })

/**
 * Connects, negotiates, runs `talk`, and closes.
 *
 * @param options.timeoutMs For the greeting, and for each answer. Default: `COMMAND_TIMEOUT_MS`.
 * @throws `vmm-control`.
 */
export async function withQmp<T>(
  socketPath: string,
  talk: (qmp: Qmp) => Promise<T>,
  options: { timeoutMs?: number } = {},
): Promise<T> {
  let socket: Socket
  try {
    socket = await connectUnixSocket(socketPath)
  } catch (error) {
    throw new BandSoxError('vmm-control', `cannot reach QEMU's control socket: ${messageOf(error)}`, { cause: error })
  }
  socket.on('error', () => undefined) // whoever waits for an answer sees it through the iterator
  try {
    const qmp = new Qmp(socket, options.timeoutMs ?? COMMAND_TIMEOUT_MS)
    await qmp.negotiate()
    return await talk(qmp)
  } finally {
    socket.destroy()
  }
}

export class Qmp {
  readonly #socket: Socket
  readonly #lines: AsyncIterator<string>
  readonly #timeoutMs: number

  constructor(socket: Socket, timeoutMs: number) {
    this.#socket = socket
    this.#timeoutMs = timeoutMs
    this.#lines = lines(socket, MAX_LINE_BYTES)
  }

  async negotiate(): Promise<void> {
    const greeting = await this.#next('its greeting', this.#timeoutMs)
    if (!greetingSchema.safeParse(greeting).success) throw new BandSoxError('vmm-control', 'QEMU did not greet as QMP')
    await this.execute('qmp_capabilities')
  }

  /** @throws `vmm-control` with QEMU's own description, or when it does not answer in time. */
  async execute(command: string, args?: Record<string, unknown>): Promise<unknown> {
    this.#socket.write(`${JSON.stringify({ execute: command, ...(args !== undefined && { arguments: args }) })}\n`)
    const deadline = performance.now() + this.#timeoutMs
    for (;;) {
      // One limit for the answer, however many events come before it.
      const value = await this.#next(command, Math.max(0, deadline - performance.now()))
      const answer = answerSchema.safeParse(value)
      if (answer.success) {
        if ('return' in answer.data) return answer.data.return
        throw new BandSoxError('vmm-control', `QEMU refused ${command}: ${answer.data.error.desc}`)
      }
      if (!eventSchema.safeParse(value).success)
        throw new BandSoxError('vmm-control', `QEMU's answer to ${command} is neither answer nor event`)
    }
  }

  async #next(about: string, timeoutMs: number): Promise<unknown> {
    try {
      const line = await within(
        this.#lines.next(),
        timeoutMs,
        () => new BandSoxError('vmm-control', `QEMU did not answer ${about} within ${this.#timeoutMs} ms`),
      )
      if (line.done) throw new BandSoxError('vmm-control', `QEMU closed its control socket before answering ${about}`)
      return JSON.parse(line.value) as unknown
    } catch (error) {
      if (error instanceof BandSoxError) throw error
      throw new BandSoxError('vmm-control', `QEMU's control socket broke at ${about}: ${messageOf(error)}`, {
        cause: error,
      })
    }
  }
}
