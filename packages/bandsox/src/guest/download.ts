/** Bytes out of a guest file: PROTOCOL.md sections 4 and 5, the host's side. Memory use does not depend on the file's size. */
import { BandSoxError, type TransferOptions } from '@bandsox/sdk'
import type { ToHost } from '../wire/message.js'
import type { Agent } from './agent.js'
import { type Checksum, chooseChecksum, createChecksum } from './checksum.js'
import type { GuestConnection } from './connection.js'
import { newOperationName, RESUME_CAPABILITY } from './operation-name.js'
import { Pieces } from './pieces.js'
import { progressReporter } from './progress.js'

/** PROTOCOL.md section 4: "every MiB at the latest". */
const BATCH_BYTES = 1_048_576
/** How often a long download looks whether a better link works again. */
const CHANGE_AFTER_BYTES = 262_144

/** Where the bytes go. */
export interface DownloadSink {
  /** Called once, before any byte. @throws To refuse the file. */
  begin(file: { sizeBytes: number; mode: number }): Promise<void>
  /** The buffers are the sink's from then on. One call at a time. */
  write(batch: Buffer[]): Promise<void>
  /** Called once, when size and checksum agree: makes the file durable and visible. */
  commit(): Promise<void>
}

export interface Downloaded {
  sizeBytes: number
  checksum: { algorithm: 'xxh64' | 'sha256' | 'md5'; value: string }
  link: GuestConnection['link']
}

/** @throws The guest's refusal as an error of ours, `checksum-mismatch`, `guest-protocol`, `guest-silent`, `link-lost`. */
export async function download(
  agent: Agent,
  path: string,
  sink: DownloadSink,
  options: TransferOptions = {},
): Promise<Downloaded> {
  return await agent.useUntilDone(new Download(agent, path, sink, options), {
    signal: options.signal,
    only: options.link,
  })
}

class Download {
  readonly #agent: Agent
  readonly #path: string
  readonly #sink: DownloadSink
  readonly #options: TransferOptions
  readonly #name = newOperationName()
  readonly #about: string
  #checksum: Checksum | undefined
  /** Set by the guest's first `ready`. */
  #file:
    | { sizeBytes: number; mode: number; writer: BatchWriter; report: (bytes: number, isLast?: boolean) => void }
    | undefined
  #received = 0

  constructor(agent: Agent, path: string, sink: DownloadSink, options: TransferOptions) {
    this.#agent = agent
    this.#path = path
    this.#sink = sink
    this.#options = options
    this.#about = `read ${path} in the guest`
  }

  canGoOn({ hello }: GuestConnection): boolean {
    return hello.capabilities.includes(RESUME_CAPABILITY)
  }

  progress(): number {
    return this.#received
  }

  async run(connection: GuestConnection): Promise<Downloaded> {
    const { signal } = this.#options
    this.#checksum ??= await createChecksum(chooseChecksum(connection.hello.checksums, this.#options.checksum))
    const checksum = this.#checksum
    await this.#file?.writer.finish() // of the connection before: what is written and what was received agree again
    connection.send({
      type: 'download',
      path: this.#path,
      checksum: checksum.algorithm,
      ...(this.canGoOn(connection) && { transfer: this.#name, offset: this.#received }),
    })
    const ready = await connection.receiveMessage('ready', { signal, about: this.#about })
    if (this.canGoOn(connection)) connection.farewell = { type: 'abort' } // else the file would be kept open in the guest for us
    const { sizeBytes, writer, report } = await this.#begin(connection, ready)
    writer.acknowledgeTo(connection)
    const complete = await this.#receive(connection, { sizeBytes, checksum, writer, report })
    await writer.finish()
    report(this.#received, true)
    const value = checksum.digest()
    if (complete.size !== this.#received || complete.checksum !== value) {
      throw new BandSoxError(
        'checksum-mismatch',
        `cannot ${this.#about}: ${this.#received} bytes with checksum ${value} arrived, the guest sent ${complete.size} with ${complete.checksum}`,
      )
    }
    await this.#sink.commit()
    connection.farewell = undefined
    if (connection.isOpen) connection.send({ type: 'complete', size: this.#received, checksum: value })
    return { sizeBytes: this.#received, checksum: { algorithm: checksum.algorithm, value }, link: connection.link }
  }

  async #begin(connection: GuestConnection, ready: Extract<ToHost, { type: 'ready' }>) {
    if (ready.offset !== this.#received)
      throw connection.violation(`it is ready from ${ready.offset} on, ${this.#received} was asked for`)
    if (ready.size === undefined || ready.mode === undefined)
      throw connection.violation('a ready without size and mode')
    if (this.#file === undefined) {
      const file = { sizeBytes: ready.size, mode: ready.mode }
      await this.#sink.begin(file)
      const report = progressReporter(this.#options.onProgress, ready.size)
      this.#file = { ...file, report, writer: new BatchWriter(this.#sink, ready) }
    } else if (ready.size !== this.#file.sizeBytes || ready.mode !== this.#file.mode)
      throw connection.violation(`it goes on with another file than it began with`)
    return this.#file
  }

  async #receive(
    connection: GuestConnection,
    file: { sizeBytes: number; checksum: Checksum; writer: BatchWriter; report: (bytes: number) => void },
  ): Promise<{ size: number; checksum: string }> {
    let batchEnd = this.#received + CHANGE_AFTER_BYTES
    for (;;) {
      const frame = await connection.receive({ signal: this.#options.signal })
      if (frame.kind === 'data') {
        if (this.#received + frame.data.length > file.sizeBytes)
          throw connection.violation(`more than the ${file.sizeBytes} bytes it announced of ${this.#path}`)
        this.#received += frame.data.length
        file.checksum.update(frame.data)
        await file.writer.add(frame.data)
        file.report(this.#received)
        if (this.#received < batchEnd) continue
        batchEnd = this.#received + CHANGE_AFTER_BYTES
        this.#agent.changeToBetterLink(connection, this.#options.link, RESUME_CAPABILITY)
      } else if (frame.kind === 'message' && frame.message.type === 'complete') return frame.message
      else throw connection.unexpected(frame, this.#about)
    }
  }
}

/** Gathers pieces to a MiB and writes one batch while the next arrives; acknowledges what is written. */
class BatchWriter {
  readonly #sink: DownloadSink
  #connection: GuestConnection | undefined
  readonly #batch = new Pieces()
  readonly #enoughBytes: number
  #batchBytes = 0
  #writing: Promise<void> = Promise.resolve()
  #written = 0

  constructor(sink: DownloadSink, { windowBytes, chunkBytes }: { windowBytes: number; chunkBytes: number }) {
    this.#sink = sink
    // The guest waits while its next chunk does not fit into the window: what we gather must leave room for that one.
    this.#enoughBytes = Math.max(1, Math.min(BATCH_BYTES, Math.floor(windowBytes / 2), windowBytes - chunkBytes))
  }

  /** @param connection The one that the bytes come over from now on. */
  acknowledgeTo(connection: GuestConnection): void {
    this.#connection = connection
  }

  async add(data: Buffer): Promise<void> {
    this.#batch.add(data)
    this.#batchBytes += data.length
    if (this.#batchBytes < this.#enoughBytes) return
    await this.#writing
    this.#writing = this.#write()
    this.#writing.catch(() => undefined) // thrown by the next `add` or `finish`, which await it
  }

  async finish(): Promise<void> {
    await this.#writing
    if (this.#batchBytes > 0) await this.#write()
  }

  async #write(): Promise<void> {
    const batch = this.#batch.take()
    const size = this.#batchBytes
    this.#batchBytes = 0
    await this.#sink.write(batch)
    this.#written += size
    if (this.#connection?.isOpen) this.#connection.send({ type: 'ack', offset: this.#written })
  }
}
