/**
 * Where a sparse file has data, told by GNU tar: Node cannot ask the kernel for it (SEEK_DATA of lseek(2)).
 *
 * In tar's own format for sparse files, version 1.0, an entry says so in its extended header, and begins with a map: decimal
 * numbers, a line each, first how many pieces there are, then offset and size of each.
 *
 * @see GNU tar's manual, "Storing Sparse Files"
 */
import path from 'node:path'
import { BandSoxError } from '@bandsox/sdk'
import { runCommand } from '../process/run.js'

export interface Piece {
  offset: number
  length: number
}

/** Two headers and the map of some thousand pieces: what comes behind is the data, which nobody wants. */
const HEAD_BYTES = 65_536
const BLOCK_BYTES = 512
const SIZE_FIELD = { begin: 124, end: 136 } as const
const IS_SPARSE_1_0 = /\d+ GNU\.sparse\.major=1\n\d+ GNU\.sparse\.minor=0\n/
const SCRIPT = 'tar --create --format=posix --sparse --sparse-version=1.0 --file=- -- "$1" | head -c "$2"'

/**
 * @returns In order, and not empty; undefined for a file that is not sparse, or where there is another tar.
 * @throws `signal.reason`.
 */
export async function sparsePieces(
  file: string,
  sizeBytes: number,
  signal?: AbortSignal,
): Promise<Piece[] | undefined> {
  try {
    const { stdout } = await runCommand(['/bin/sh', '-c', SCRIPT, 'sh', path.basename(file), String(HEAD_BYTES)], {
      cwd: path.dirname(file),
      ...(signal !== undefined && { signal }),
    })
    return piecesIn(stdout, sizeBytes)
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'command-failed') return undefined
    throw error
  }
}

/** @param archive The beginning of an archive: all of it that is looked at is ASCII. */
export function piecesIn(archive: string, sizeBytes: number): Piece[] | undefined {
  const extended = Number.parseInt(archive.slice(SIZE_FIELD.begin, SIZE_FIELD.end), 8)
  const isExtended = archive[156] === 'x' && Number.isInteger(extended)
  if (!isExtended || !IS_SPARSE_1_0.test(archive.slice(BLOCK_BYTES, BLOCK_BYTES + extended))) return undefined
  // Behind the extended header, padded to blocks, and the entry's own header.
  const map = archive.slice((2 + Math.ceil(extended / BLOCK_BYTES)) * BLOCK_BYTES)
  const lines = /^(?:\d+\n)+/.exec(map)?.[0] ?? ''
  const [count = 0, ...numbers] = (lines.match(/\d+/g) ?? []).map(Number)
  const pieces: Piece[] = []
  let end = 0
  for (let index = 0; index < count; index++) {
    const [offset, length] = [numbers[2 * index], numbers[2 * index + 1]]
    if (offset === undefined || length === undefined || offset < end || offset + length > sizeBytes) return undefined
    end = offset + length
    if (length > 0) pieces.push({ offset, length })
  }
  return pieces.length === 0 ? undefined : pieces
}
