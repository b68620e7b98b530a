/** The maps of sparse files: which parts of a file are in the tar. See the GNU tar manual, "Storing Sparse Files". */
import { BandSoxError } from '@bandsox/sdk'
import { decimal, type PaxRecords } from './pax.js'
import type { ByteString, Content, Extent } from './tar-entry.js'

/** Bytes of a map in front of a file's data are padded to whole blocks of this size. */
const MAP_BLOCK = 512

/** How a PAX header describes a sparse file. In format 1.0 the map stands in front of the data, else in the header. */
export type PaxSparse = {
  sizeBytes: number
  /** Its own; the header has another, for readers that would take the file for a whole one. */
  path: ByteString | undefined
} & ({ map: 'in-data' } | { map: 'in-header'; pairs: number[] })

/** @returns undefined for a file that is not sparse. @throws `layer-invalid`. */
export function sparseOf({ values, sparsePairs }: PaxRecords): PaxSparse | undefined {
  const size = values.get('GNU.sparse.size') ?? values.get('GNU.sparse.realsize')
  const map = values.get('GNU.sparse.map')
  const path = values.get('GNU.sparse.name') || undefined
  const version = `${values.get('GNU.sparse.major') ?? ''}.${values.get('GNU.sparse.minor') ?? ''}`
  const isVersion1 = version === '1.0'
  // Of another version it is a file as it stands there, to Go as well.
  if (!isVersion1 && !['.', '0.0', '0.1'].includes(version)) return undefined
  if (version === '.' && map === undefined && sparsePairs.length === 0) return undefined
  if (size === undefined) throw new BandSoxError('layer-invalid', 'a sparse file does not say its size')
  const sizeBytes = decimal(size, 'GNU.sparse.realsize')
  if (isVersion1) return { map: 'in-data', sizeBytes, path }
  const listed = map === undefined || map === '' ? [] : map.split(',').map((each) => decimal(each, 'GNU.sparse.map'))
  return { map: 'in-header', sizeBytes, path, pairs: sparsePairs.length > 0 ? sparsePairs : listed }
}

/**
 * Reads as much of a map in front of the data as there is.
 *
 * @returns undefined when more bytes are needed.
 * @throws `layer-invalid`.
 */
export function parseDataMap(bytes: Buffer): { pairs: number[]; mapBytes: number } | undefined {
  const numbers: number[] = []
  let at = 0
  // The first number says how many pairs follow.
  while (numbers.length === 0 || numbers.length < 1 + 2 * (numbers[0] ?? 0)) {
    const end = bytes.indexOf(0x0a, at)
    if (end === -1) {
      if (bytes.length - at > 20)
        throw new BandSoxError('layer-invalid', 'the map of a sparse file is no list of numbers')
      return undefined
    }
    numbers.push(decimal(bytes.toString('latin1', at, end), 'a number in the map of a sparse file'))
    at = end + 1
  }
  const mapBytes = Math.ceil(at / MAP_BLOCK) * MAP_BLOCK
  return bytes.length < mapBytes ? undefined : { pairs: numbers.slice(1), mapBytes }
}

/**
 * @param pairs Offset and length in turn, ascending.
 * @param storedBytes What the tar holds of it, without a map.
 * @throws `layer-invalid` when they overlap, reach past the end, or do not add up to what is stored.
 */
export function sparseContent(position: number, storedBytes: number, sizeBytes: number, pairs: number[]): Content {
  if (pairs.length % 2 !== 0)
    throw new BandSoxError('layer-invalid', 'the map of a sparse file has an offset without a length')
  const extents: Extent[] = []
  let end = 0
  let sum = 0
  for (let index = 0; index < pairs.length; index += 2) {
    const offset = pairs[index] ?? 0
    const length = pairs[index + 1] ?? 0
    if (offset < end || offset + length > sizeBytes) {
      throw new BandSoxError(
        'layer-invalid',
        `the map of a sparse file of ${sizeBytes} bytes has ${length} bytes at ${offset}, after ${end}`,
      )
    }
    end = offset + length
    sum += length
    if (length > 0) extents.push({ offset, length }) // GNU ends a map with an empty extent, to say the size
  }
  if (sum !== storedBytes) {
    throw new BandSoxError('layer-invalid', `a sparse file has ${storedBytes} bytes, and its map ${sum}`)
  }
  return { position, storedBytes, sizeBytes, extents }
}
