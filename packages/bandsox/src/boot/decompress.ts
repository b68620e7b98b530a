/** Decompresses a file with the host's own tool for its format. */
import { createReadStream, createWriteStream } from 'node:fs'
import { rename } from 'node:fs/promises'
import { pipeline } from 'node:stream/promises'
import { createGunzip } from 'node:zlib'
import { BandSoxError } from '@bandsox/sdk'
import { runCommand } from '../process/run.js'

export type Compression = 'none' | 'lz4' | 'zstd' | 'xz' | 'gzip'

/** The first bytes of each format; `lz4` is the legacy frame that the kernel's build uses. */
const magics: [Exclude<Compression, 'none'>, string][] = [
  ['lz4', '02214c18'],
  ['zstd', '28b52ffd'],
  ['xz', 'fd377a585a00'],
  ['gzip', '1f8b'],
]

/** The format by its first bytes; `none` when it is none that we know. */
export function detectCompression(head: Buffer): Compression {
  const hex = head.toString('hex', 0, 6)
  return magics.find(([, magic]) => hex.startsWith(magic))?.[0] ?? 'none'
}

/**
 * Decompresses `input` to `output`; the input may be consumed by it.
 *
 * @throws `host-missing` when the tool is not installed, `artifact-damaged` when the tool rejects the file.
 */
export async function decompressFile({
  input,
  output,
  compression,
  signal,
}: {
  input: string
  output: string
  compression: Compression
  signal?: AbortSignal | undefined
}): Promise<void> {
  const options = signal === undefined ? {} : { signal }
  try {
    if (compression === 'none') await rename(input, output)
    if (compression === 'gzip')
      await pipeline(createReadStream(input), createGunzip(), createWriteStream(output), options)
    if (compression === 'lz4') await runCommand(['lz4', '-d', '-q', '-f', input, output], options)
    if (compression === 'zstd') await runCommand(['zstd', '-d', '-q', '-f', input, '-o', output], options)
    if (compression === 'xz') {
      await rename(input, `${output}.xz`) // xz names its output after its input
      await runCommand(['xz', '-d', '-q', '-f', `${output}.xz`], options)
    }
  } catch (error) {
    signal?.throwIfAborted()
    if (error instanceof BandSoxError && error.code === 'host-missing') throw error
    throw new BandSoxError('artifact-damaged', `cannot decompress ${input} (${compression})`, { cause: error })
  }
}
