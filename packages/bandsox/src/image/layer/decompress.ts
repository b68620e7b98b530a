/** A blob's bytes, unpacked: gzip, zstd, or as they are. The first bytes tell, since media types are often wrong. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { Readable } from 'node:stream'
import { createGunzip } from 'node:zlib'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'

export type Compression = 'gzip' | 'zstd' | 'none'

const magics: [Compression | 'xz' | 'bzip2', number[]][] = [
  ['gzip', [0x1f, 0x8b]],
  ['zstd', [0x28, 0xb5, 0x2f, 0xfd]],
  // A skippable frame, as zstd:chunked may begin with one.
  ['zstd', [0x50, 0x2a, 0x4d, 0x18]],
  ['xz', [0xfd, 0x37, 0x7a, 0x58, 0x5a]],
  ['bzip2', [0x42, 0x5a, 0x68]],
]
/** Enough for the longest of them. */
const MAGIC_BYTES = 6
/** Larger pieces mean fewer trips to zlib's threads: 64 KiB cost a third of the speed of 256 KiB. */
const PIECE_BYTES = 256 * 1024
/** What a zstd frame may ask for to be unpacked; `zstd --ultra -22`, the most that anybody uses, asks for 128 MiB. */
const ZSTD_WINDOW_MIB = 128

/** @throws `layer-invalid` for a compression that no container engine writes. */
export function compressionOf(start: Uint8Array): Compression {
  const [found] = magics.find(([, magic]) => magic.every((byte, index) => start[index] === byte)) ?? ['none']
  if (found === 'xz' || found === 'bzip2') {
    throw new BandSoxError('layer-invalid', `it is compressed with ${found}, which no OCI image may be`)
  }
  return found
}

/**
 * @param source Read at the pace of the reader; ended early when the reader leaves early.
 * @throws `layer-invalid` when it cannot be unpacked, or is cut short; `signal.reason`.
 */
export async function* decompress(source: AsyncIterable<Buffer>, signal?: AbortSignal): AsyncGenerator<Buffer> {
  const { start, rest, leave } = await peek(source)
  try {
    const compression = compressionOf(start)
    if (compression === 'none') yield* rest
    else if (compression === 'gzip') yield* gunzip(rest)
    else yield* unzstd(rest, signal)
  } finally {
    leave()
  }
}

async function* gunzip(source: AsyncGenerator<Buffer>): AsyncGenerator<Buffer> {
  const input = Readable.from(source, { objectMode: false })
  const output = createGunzip({ chunkSize: PIECE_BYTES })
  input.on('error', (error) => output.destroy(error))
  input.pipe(output)
  try {
    for await (const piece of output) yield piece as Buffer
  } catch (error) {
    throw isZlibError(error) ? new BandSoxError('layer-invalid', `gzip: ${messageOf(error)}`, { cause: error }) : error
  } finally {
    input.destroy()
    output.destroy()
  }
}

const isZlibError = (error: unknown): boolean =>
  error instanceof Error && 'code' in error && typeof error.code === 'string' && error.code.startsWith('Z_')

/** Node 20 has no zstd of its own. */
async function* unzstd(source: AsyncGenerator<Buffer>, signal?: AbortSignal): AsyncGenerator<Buffer> {
  const child = spawn('zstd', ['-dcq', `--memory=${ZSTD_WINDOW_MIB}MiB`], {
    stdio: ['pipe', 'pipe', 'pipe'],
    env: { PATH: process.env['PATH'] },
    ...(signal === undefined ? {} : { signal }),
  })
  let complaint = ''
  child.stderr.on('data', (data: Buffer) => {
    if (complaint.length < 1000) complaint += data.toString('utf8')
  })
  const ended = once(child, 'close').catch((error: unknown) => {
    throw isSystemError(error, 'ENOENT')
      ? new BandSoxError('host-missing', 'zstd is not installed, and the layer is compressed with it', { cause: error })
      : error
  })
  ended.catch(() => undefined) // awaited below, after the output
  const input = Readable.from(source, { objectMode: false })
  let inputError: unknown
  input.on('error', (error) => {
    inputError = error
    child.kill('SIGKILL')
  })
  // It stops reading at an error of its own, and says so at its end.
  child.stdin.on('error', () => input.destroy())
  input.pipe(child.stdin)
  try {
    for await (const piece of child.stdout) yield piece as Buffer
    const [code] = (await ended) as [number | null]
    if (inputError !== undefined) throw inputError
    if (code !== 0) throw new BandSoxError('layer-invalid', `zstd: ${complaint.trim() || `it exited with ${code}`}`)
  } catch (error) {
    signal?.throwIfAborted() // with its own reason; the child says AbortError
    throw error
  } finally {
    input.destroy()
    child.kill('SIGKILL')
  }
}

/** The first bytes, and all of them again; whoever takes them leaves the source at the end. */
async function peek(
  source: AsyncIterable<Buffer>,
): Promise<{ start: Buffer; rest: AsyncGenerator<Buffer>; leave: () => void }> {
  const iterator = source[Symbol.asyncIterator]()
  const pieces: Buffer[] = []
  let bytes = 0
  while (bytes < MAGIC_BYTES) {
    const { done, value } = await iterator.next()
    if (done === true) break
    pieces.push(value)
    bytes += value.length
  }
  async function* all(): AsyncGenerator<Buffer> {
    yield* pieces
    for (;;) {
      const { done, value } = await iterator.next()
      if (done === true) return
      yield value
    }
  }
  // Nobody waits for it: a source that is still asked for bytes ends when they come, and may be what the reader's error ends.
  const leave = () => void Promise.resolve(iterator.return?.()).catch(() => undefined)
  return { start: Buffer.concat(pieces), rest: all(), leave }
}
