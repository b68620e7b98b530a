/** Bytes into a guest file: PROTOCOL.md sections 4 and 5, the host's side. Memory use does not depend on the file's size. */
import { BandSoxError, type TransferResult, type WriteOptions } from '@bandsox/sdk'
import type { Agent } from './agent.js'
import { type Checksum, chooseChecksum, createChecksum } from './checksum.js'
import type { FromGuest, GuestConnection } from './connection.js'
import { newOperationName, RESUME_CAPABILITY } from './operation-name.js'
import { progressReporter } from './progress.js'
import type { UploadSource } from './upload-source.js'

/** PROTOCOL.md section 4: while it syncs, the guest repeats itself every 3 s; a little more often is forgiven. */
const LEAST_REPEAT_INTERVAL_MS = 1_000

/**
 * @param source Closed at the end, however that comes.
 * @throws The guest's refusal as an error of ours, `checksum-mismatch`, `guest-protocol`, `guest-silent`, `link-lost`.
 */
export async function upload(
  agent: Agent,
  path: string,
  source: UploadSource,
  options: WriteOptions = {},
): Promise<TransferResult> {
  const startedAt = performance.now()
  try {
    const attempt = new Upload(agent, path, source, options)
    const done = await agent.useUntilDone(attempt, { signal: options.signal, only: options.link })
    return { path, ...done, durationMs: performance.now() - startedAt }
  } finally {
    await source.close()
  }
}

class Upload {
  readonly #agent: Agent
  readonly #path: string
  readonly #source: UploadSource
  readonly #options: WriteOptions
  readonly #name = newOperationName()
  readonly #about: string
  readonly #report: (bytes: number, isLast?: boolean) => void
  #checksum: Checksum | undefined
  /** Set by the end of the source: a checksum is used up by being read. */
  #value: string | undefined
  /** How much of the content is in the checksum; a repeated part is not taken twice. */
  #summed = 0
  /** How much was handed to a connection, counted from the file's start, and how much the guest has confirmed. */
  #sent = 0
  #acknowledged = 0

  constructor(agent: Agent, path: string, source: UploadSource, options: WriteOptions) {
    this.#agent = agent
    this.#path = path
    this.#source = source
    this.#options = options
    this.#about = `write ${path} in the guest`
    this.#report = progressReporter(options.onProgress, source.sizeBytes)
  }

  canGoOn({ hello }: GuestConnection): boolean {
    return hello.capabilities.includes(RESUME_CAPABILITY)
  }

  progress(): number {
    return this.#acknowledged
  }

  async run(connection: GuestConnection): Promise<Pick<TransferResult, 'sizeBytes' | 'checksum' | 'link'>> {
    const { signal } = this.#options
    const about = this.#about
    this.#checksum ??= await createChecksum(chooseChecksum(connection.hello.checksums, this.#options.checksum))
    const checksum = this.#checksum
    connection.send({
      ...this.#request(checksum),
      ...(this.canGoOn(connection) && { transfer: this.#name, offset: this.#acknowledged }),
    })
    const ready = await connection.receiveMessage('ready', { signal, about })
    if (this.canGoOn(connection)) connection.farewell = { type: 'abort' } // else what it has would wait in the guest for us
    if (ready.offset < this.#acknowledged || ready.offset > this.#sent)
      throw connection.violation(
        `it is ready from ${ready.offset} on, between ${this.#acknowledged} and ${this.#sent} would be right`,
      )
    this.#confirm(ready.offset)
    await this.#send(connection, ready, checksum)
    this.#value ??= checksum.digest()
    const value = this.#value
    connection.send({ type: 'complete', size: this.#sent, checksum: value })
    await this.#receiveComplete(connection, value)
    connection.farewell = undefined
    return {
      sizeBytes: this.#sent,
      checksum: { algorithm: checksum.algorithm, value },
      link: connection.link,
    }
  }

  #request({ algorithm }: Checksum) {
    const { mode, user, makeParents = true } = this.#options
    const { sizeBytes } = this.#source
    return {
      type: 'upload' as const,
      path: this.#path,
      checksum: algorithm,
      ...(sizeBytes !== undefined && { size: sizeBytes }),
      ...(mode !== undefined && { mode }),
      ...(user !== undefined && { user }),
      makeParents,
    }
  }

  async #send(
    connection: GuestConnection,
    { chunkBytes, windowBytes, offset: start }: { chunkBytes: number; windowBytes: number; offset: number },
    checksum: Checksum,
  ): Promise<void> {
    const { signal } = this.#options
    const stepBytes = Math.floor(windowBytes / 2)
    let at = start
    const blocks = this.#source.read(start)[Symbol.asyncIterator]()
    for (;;) {
      const onFrame = (frame: FromGuest) => this.#takeAck(connection, frame, at)
      const { done, value: block } = await connection.during(blocks.next(), { signal, onFrame })
      if (done) break
      for (let offset = 0; offset < block.length; offset += stepBytes) {
        const piece = Buffer.from(block.buffer, block.byteOffset + offset, Math.min(stepBytes, block.length - offset))
        while (at + piece.length - this.#acknowledged > windowBytes) await this.#receiveAck(connection, at)
        const end = at + piece.length
        if (end > this.#summed) {
          checksum.update(piece.subarray(Math.max(0, this.#summed - at)))
          this.#summed = end
        }
        this.#sent = Math.max(this.#sent, end)
        await connection.sendData(piece, chunkBytes, signal)
        at = end
        this.#report(at)
        this.#agent.changeToBetterLink(connection, this.#options.link, RESUME_CAPABILITY)
      }
    }
    this.#report(at, true)
  }

  async #receiveAck(connection: GuestConnection, sent: number): Promise<void> {
    this.#takeAck(connection, await connection.receive({ signal: this.#options.signal }), sent)
  }

  #takeAck(connection: GuestConnection, frame: FromGuest, sent: number): void {
    if (frame.kind !== 'message' || frame.message.type !== 'ack') throw connection.unexpected(frame, this.#about)
    const { offset } = frame.message
    if (offset <= this.#acknowledged || offset > sent) throw falseAck(connection, offset, this.#acknowledged, sent)
    this.#confirm(offset)
  }

  #confirm(offset: number): void {
    this.#acknowledged = offset
    this.#source.confirmed(offset)
  }

  /** The guest repeats its `ack` while it syncs a large file to its disk, so silence is a fault here as everywhere. */
  async #receiveComplete(connection: GuestConnection, value: string): Promise<void> {
    const startedAt = performance.now()
    let repeats = 0
    for (;;) {
      const frame = await connection.receive({ signal: this.#options.signal })
      if (frame.kind === 'message' && frame.message.type === 'ack') {
        const { offset } = frame.message
        if (offset === this.#acknowledged) repeats++
        const tooOften = repeats > 1 + (performance.now() - startedAt) / LEAST_REPEAT_INTERVAL_MS
        if (offset < this.#acknowledged || offset > this.#sent || tooOften)
          throw falseAck(connection, offset, this.#acknowledged, this.#sent)
        this.#confirm(offset)
        continue
      }
      if (frame.kind !== 'message' || frame.message.type !== 'complete') throw connection.unexpected(frame, this.#about)
      const { size, checksum } = frame.message
      if (size === this.#sent && checksum === value) return
      throw new BandSoxError(
        'checksum-mismatch',
        `cannot ${this.#about}: the guest has ${size} bytes with checksum ${checksum}, ${this.#sent} bytes with ${value} were sent`,
      )
    }
  }
}

const falseAck = (connection: GuestConnection, offset: number, before: number, sent: number): BandSoxError =>
  connection.violation(`an ack of ${offset} after one of ${before}, with ${sent} bytes sent`)
