/** Bytes into a guest file: PROTOCOL.md section 4, the host's side. Memory use does not depend on the file's size. */
import type { FileHandle } from 'node:fs/promises'
import { BandSoxError, type ChecksumName, type TransferResult, type WriteOptions } from '@bandsox/sdk'
import type { Agent } from './agent.js'
import { type Checksum, chooseChecksum, createChecksum } from './checksum.js'
import type { GuestConnection } from './connection.js'
import { progressReporter } from './progress.js'

/** Read from the host's file at once; two such buffers are in use, one being filled while the other is sent. */
const BLOCK_BYTES = 1_048_576

/** PROTOCOL.md section 4: while it syncs, the guest repeats itself every 3 s; a little more often is forgiven. */
const LEAST_REPEAT_INTERVAL_MS = 1_000

export interface UploadSource {
  /** When known beforehand; the guest then refuses anything else. */
  sizeBytes: number | undefined
  /** A block stays untouched by the reader until the next but one is asked for. */
  blocks: AsyncIterable<Uint8Array>
}

/** @throws The guest's refusal as an error of ours, `checksum-mismatch`, `guest-protocol`, `guest-silent`, `link-lost`. */
export async function upload(
  agent: Agent,
  path: string,
  source: UploadSource,
  options: WriteOptions = {},
): Promise<TransferResult> {
  const startedAt = performance.now()
  const about = `write ${path} in the guest`
  return await agent.use(async (connection) => {
    const checksum = await createChecksum(chooseChecksum(connection.hello.checksums, options.checksum))
    connection.send({
      type: 'upload',
      path,
      checksum: checksum.algorithm,
      ...(source.sizeBytes !== undefined && { size: source.sizeBytes }),
      ...(options.mode !== undefined && { mode: options.mode }),
      ...(options.user !== undefined && { user: options.user }),
      makeParents: options.makeParents ?? true,
    })
    const ready = await connection.receiveMessage('ready', { signal: options.signal, about })
    if (ready.offset !== 0) throw connection.violation(`it is ready from ${ready.offset} on, 0 was asked for`)
    const { sent: sizeBytes, acknowledged } = await sendBlocks(connection, ready, source, checksum, options, about)
    const value = checksum.digest()
    connection.send({ type: 'complete', size: sizeBytes, checksum: value })
    await receiveComplete(connection, { sizeBytes, checksum: value, acknowledged }, options.signal, about)
    const result = { algorithm: checksum.algorithm, value } satisfies { algorithm: ChecksumName; value: string }
    return { path, sizeBytes, checksum: result, link: connection.link, durationMs: performance.now() - startedAt }
  }, options.signal)
}

async function sendBlocks(
  connection: GuestConnection,
  { chunkBytes, windowBytes }: { chunkBytes: number; windowBytes: number },
  source: UploadSource,
  checksum: Checksum,
  { signal, onProgress }: WriteOptions,
  about: string,
): Promise<{ sent: number; acknowledged: number }> {
  const report = progressReporter(onProgress, source.sizeBytes)
  let sent = 0
  let acknowledged = 0
  const stepBytes = Math.floor(windowBytes / 2)
  for await (const block of source.blocks) {
    for (let offset = 0; offset < block.length; offset += stepBytes) {
      const piece = Buffer.from(block.buffer, block.byteOffset + offset, Math.min(stepBytes, block.length - offset))
      while (sent + piece.length - acknowledged > windowBytes) {
        const { offset } = await connection.receiveMessage('ack', { signal, about })
        if (offset <= acknowledged || offset > sent) throw falseAck(connection, offset, acknowledged, sent)
        acknowledged = offset
      }
      checksum.update(piece)
      await connection.sendData(piece, chunkBytes, signal)
      sent += piece.length
      report(sent)
    }
  }
  report(sent, true)
  return { sent, acknowledged }
}

/** The guest repeats its `ack` while it syncs a large file to its disk, so silence is a fault here as everywhere. */
async function receiveComplete(
  connection: GuestConnection,
  sent: { sizeBytes: number; checksum: string; acknowledged: number },
  signal: AbortSignal | undefined,
  about: string,
): Promise<void> {
  let { acknowledged } = sent
  const startedAt = performance.now()
  let repeats = 0
  for (;;) {
    const frame = await connection.receive({ signal })
    if (frame.kind === 'message' && frame.message.type === 'ack') {
      const { offset } = frame.message
      if (offset === acknowledged) repeats++
      const tooOften = repeats > 1 + (performance.now() - startedAt) / LEAST_REPEAT_INTERVAL_MS
      if (offset < acknowledged || offset > sent.sizeBytes || tooOften) {
        throw falseAck(connection, offset, acknowledged, sent.sizeBytes)
      }
      acknowledged = offset
      continue
    }
    if (frame.kind !== 'message' || frame.message.type !== 'complete') throw connection.unexpected(frame, about)
    const { size, checksum } = frame.message
    if (size === sent.sizeBytes && checksum === sent.checksum) return
    throw new BandSoxError(
      'checksum-mismatch',
      `cannot ${about}: the guest has ${size} bytes with checksum ${checksum}, ${sent.sizeBytes} bytes with ${sent.checksum} were sent`,
    )
  }
}

const falseAck = (connection: GuestConnection, offset: number, before: number, sent: number): BandSoxError =>
  connection.violation(`an ack of ${offset} after one of ${before}, with ${sent} bytes sent`)

/** The content of an open host file, read ahead by one block. */
export async function* fileBlocks(file: FileHandle): AsyncGenerator<Uint8Array> {
  const buffers = [Buffer.allocUnsafe(BLOCK_BYTES), Buffer.allocUnsafe(BLOCK_BYTES)] as const
  let turn = 0
  const readNext = () => file.read(buffers[turn++ % 2 === 0 ? 0 : 1], 0, BLOCK_BYTES, null)
  let next = readNext()
  try {
    for (;;) {
      const { bytesRead, buffer } = await next
      if (bytesRead === 0) return
      next = readNext()
      next.catch(() => undefined) // seen when it is awaited; until then the block before it is being sent
      yield buffer.subarray(0, bytesRead)
    }
  } finally {
    await next // no read may run on into a file that its owner closes
  }
}
