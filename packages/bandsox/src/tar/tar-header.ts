/** Reads the 512-byte headers of a tar: v7, ustar, PAX, GNU. Bytes in, numbers out. */
import { BandSoxError } from '@bandsox/sdk'
import type { ByteString } from './tar-entry.js'

export const BLOCK = 512

/** Where each field lies: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format". */
const fields = {
  name: [0, 100],
  mode: [100, 8],
  uid: [108, 8],
  gid: [116, 8],
  size: [124, 12],
  mtime: [136, 12],
  checksum: [148, 8],
  linkName: [157, 100],
  devMajor: [329, 8],
  devMinor: [337, 8],
  prefix: [345, 155],
  realSize: [483, 12],
} as const satisfies Record<string, readonly [start: number, length: number]>

const TYPE_OFFSET = 156
/** The two bytes behind it, a version, nobody looks at; GNU's own format has a space for the NUL. */
const USTAR = 'ustar\x00'
/** Of GNU's old sparse files: pairs of offset and length, and whether another block of pairs follows. */
const OLD_SPARSE = { start: 386, pairs: 4, more: 482 }
const OLD_SPARSE_BLOCK = { start: 0, pairs: 21, more: 504 }

export interface Header {
  path: ByteString
  /** Type flag, a single character. */
  type: string
  mode: number
  uid: number
  gid: number
  size: number
  mtime: number
  linkName: ByteString
  devMajor: number
  devMinor: number
}

export const isZeroBlock = (block: Buffer): boolean => block.every((byte) => byte === 0)

/** @throws `layer-invalid` for a wrong checksum or a number that is none. */
export function parseHeader(block: Buffer): Header {
  checkSum(block)
  const type = String.fromCharCode(block[TYPE_OFFSET] ?? 0)
  const name = text(block, 'name')
  const prefix = block.toString('latin1', 257, 263) === USTAR ? text(block, 'prefix') : ''
  return {
    path: prefix === '' ? name : `${prefix}/${name}`,
    type,
    mode: number(block, 'mode') & 0o7777,
    uid: number(block, 'uid'),
    gid: number(block, 'gid'),
    size: number(block, 'size'),
    mtime: number(block, 'mtime', -Number.MAX_SAFE_INTEGER),
    linkName: text(block, 'linkName'),
    // Old writers leave garbage there for what is no device.
    devMajor: type === '3' || type === '4' ? number(block, 'devMajor') : 0,
    devMinor: type === '3' || type === '4' ? number(block, 'devMinor') : 0,
  }
}

/** The full size of an old GNU sparse file. */
export const oldSparseSize = (block: Buffer): number => number(block, 'realSize')

/** Pairs of offset and length in the header of an old GNU sparse file, or in one of the blocks that follow it. */
export function oldSparsePairs(block: Buffer, where: 'header' | 'extension'): { pairs: number[]; more: boolean } {
  const { start, pairs: count, more } = where === 'header' ? OLD_SPARSE : OLD_SPARSE_BLOCK
  const pairs: number[] = []
  for (let index = 0; index < count; index++) {
    const at = start + index * 24
    if (block[at] === 0) break // unused
    pairs.push(parseNumber(block.subarray(at, at + 12), 'sparse offset'))
    pairs.push(parseNumber(block.subarray(at + 12, at + 24), 'sparse length'))
  }
  return { pairs, more: block[more] !== 0 }
}

function text(block: Buffer, field: keyof typeof fields): ByteString {
  const [start, length] = fields[field]
  const end = block.indexOf(0, start)
  return block.toString('latin1', start, end === -1 ? start + length : Math.min(end, start + length))
}

function number(block: Buffer, field: keyof typeof fields, least = 0): number {
  const [start, length] = fields[field]
  return parseNumber(block.subarray(start, start + length), field, least)
}

/** Octal digits, or base 256 with the highest bit set (GNU), which may be negative. */
function parseNumber(field: Buffer, name: string, least = 0): number {
  const value = ((field[0] ?? 0) & 0x80) === 0 ? parseOctal(field, name) : parseBinary(field)
  if (Number.isSafeInteger(value) && value >= least) return value
  throw new BandSoxError('layer-invalid', `${name} is ${value}`)
}

function parseOctal(field: Buffer, name: string): number {
  const digits = field.toString('latin1').replace(/^[ \0]+|[ \0]+$/g, '')
  // Some writers end a field at its first NUL and leave old bytes behind it.
  const [used = ''] = digits.split('\0')
  if (!/^[0-7]*$/.test(used)) {
    throw new BandSoxError('layer-invalid', `${name} is no octal number: ${JSON.stringify(used)}`)
  }
  return used === '' ? 0 : Number.parseInt(used, 8)
}

function parseBinary(field: Buffer): number {
  const isNegative = ((field[0] ?? 0) & 0x40) !== 0
  let value = BigInt(isNegative ? (field[0] ?? 0) - 256 : (field[0] ?? 0) & 0x3f)
  for (const byte of field.subarray(1)) value = value * 256n + BigInt(byte)
  return Number(value)
}

/** POSIX sums unsigned bytes; some old writers summed signed ones. */
function checkSum(block: Buffer): void {
  const [start, length] = fields.checksum
  let unsigned = 0
  let signed = 0
  for (let at = 0; at < BLOCK; at++) {
    const byte = at >= start && at < start + length ? 0x20 : (block[at] ?? 0)
    unsigned += byte
    signed += byte > 127 ? byte - 256 : byte
  }
  const told = number(block, 'checksum')
  if (told !== unsigned && told !== signed) {
    throw new BandSoxError('layer-invalid', `a header's checksum is ${unsigned}, and it says ${told}`)
  }
}
