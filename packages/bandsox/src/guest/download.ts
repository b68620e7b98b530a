/** Bytes out of a guest file: PROTOCOL.md section 4, the host's side. Memory use does not depend on the file's size. */
import { BandSoxError, type TransferOptions } from '@bandsox/sdk'
import type { Agent } from './agent.js'
import { chooseChecksum, createChecksum } from './checksum.js'
import type { GuestConnection } from './connection.js'
import { Pieces } from './pieces.js'
import { progressReporter } from './progress.js'

/** PROTOCOL.md section 4: "every MiB at the latest". */
const BATCH_BYTES = 1_048_576

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
  const about = `read ${path} in the guest`
  const { signal } = options
  return await agent.use(async (connection) => {
    const checksum = await createChecksum(chooseChecksum(connection.hello.checksums, options.checksum))
    connection.send({ type: 'download', path, checksum: checksum.algorithm })
    const ready = await connection.receiveMessage('ready', { signal, about })
    if (ready.offset !== 0) throw connection.violation(`it is ready from ${ready.offset} on, 0 was asked for`)
    if (ready.size === undefined || ready.mode === undefined)
      throw connection.violation('a ready without size and mode')
    await sink.begin({ sizeBytes: ready.size, mode: ready.mode })
    const report = progressReporter(options.onProgress, ready.size)
    const writer = new BatchWriter(sink, connection, ready)
    let received = 0
    let complete: { size: number; checksum: string } | undefined
    while (complete === undefined) {
      const frame = await connection.receive({ signal })
      if (frame.kind === 'data') {
        received += frame.data.length
        if (received > ready.size)
          throw connection.violation(`more than the ${ready.size} bytes it announced of ${path}`)
        checksum.update(frame.data)
        await writer.add(frame.data)
        report(received)
      } else if (frame.kind === 'message' && frame.message.type === 'complete') complete = frame.message
      else throw connection.unexpected(frame, about)
    }
    await writer.finish()
    report(received, true)
    const value = checksum.digest()
    if (complete.size !== received || complete.checksum !== value) {
      throw new BandSoxError(
        'checksum-mismatch',
        `cannot ${about}: ${received} bytes with checksum ${value} arrived, the guest sent ${complete.size} with ${complete.checksum}`,
      )
    }
    await sink.commit()
    connection.send({ type: 'complete', size: received, checksum: value })
    return { sizeBytes: received, checksum: { algorithm: checksum.algorithm, value }, link: connection.link }
  }, signal)
}

/** Gathers pieces to a MiB and writes one batch while the next arrives; acknowledges what is written. */
class BatchWriter {
  readonly #sink: DownloadSink
  readonly #connection: GuestConnection
  readonly #batch = new Pieces()
  readonly #enoughBytes: number
  #batchBytes = 0
  #writing: Promise<void> = Promise.resolve()
  #written = 0

  constructor(
    sink: DownloadSink,
    connection: GuestConnection,
    { windowBytes, chunkBytes }: { windowBytes: number; chunkBytes: number },
  ) {
    this.#sink = sink
    this.#connection = connection
    // The guest waits while its next chunk does not fit into the window: what we gather must leave room for that one.
    this.#enoughBytes = Math.max(1, Math.min(BATCH_BYTES, Math.floor(windowBytes / 2), windowBytes - chunkBytes))
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
    if (this.#connection.isOpen) this.#connection.send({ type: 'ack', offset: this.#written })
  }
}
