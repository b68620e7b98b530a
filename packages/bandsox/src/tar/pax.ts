/** PAX extended headers: `LENGTH KEY=VALUE\n` each, about the next entry. See POSIX.1-2017, pax, "pax Extended Header". */
import { BandSoxError } from '@bandsox/sdk'
import { MAX_XATTR_BYTES } from './limits.js'
import type { ByteString } from './tar-entry.js'

/** Of the tar that star wrote first, and all tools for containers now. */
const XATTR_PREFIX = 'SCHILY.xattr.'
const SPACE = 0x20
const EQUALS = 0x3d
const NEWLINE = 0x0a
/** Keys whose values become names; what nobody here knows may hold any bytes. */
const names = new Set(['path', 'linkpath', 'GNU.sparse.name'])
/** Digits of the longest length that fits the bound of an extension. */
const MAX_LENGTH_DIGITS = 7

export interface PaxRecords {
  /** The last of each key; an empty value takes back what the header says, which is what leaving it out does here. */
  values: Map<string, ByteString>
  xattrs: Map<ByteString, Buffer>
  /** Of GNU's sparse format 0.0, whose keys come many times: offset and length in turn. */
  sparsePairs: number[]
}

/** @throws `layer-invalid` for a record that is cut short, or not as announced. */
export function parsePax(bytes: Buffer): PaxRecords {
  const records: PaxRecords = { values: new Map(), xattrs: new Map(), sparsePairs: [] }
  let xattrBytes = 0
  for (let at = 0; at < bytes.length; ) {
    const { key, value, next } = readRecord(bytes, at)
    at = next
    if (key.includes('\0')) throw new BandSoxError('layer-invalid', 'a key of an extended header holds a NUL')
    if (key.startsWith(XATTR_PREFIX)) {
      xattrBytes += key.length + value.length
      if (xattrBytes > MAX_XATTR_BYTES) {
        throw new BandSoxError(
          'layer-invalid',
          `the extended attributes of one file have over ${MAX_XATTR_BYTES} bytes`,
        )
      }
      records.xattrs.set(key.slice(XATTR_PREFIX.length), Buffer.from(value))
    } else if (key === 'GNU.sparse.offset' || key === 'GNU.sparse.numbytes') {
      records.sparsePairs.push(decimal(value.toString('latin1'), key))
    } else {
      const text = value.toString('latin1')
      if (names.has(key) && text.includes('\0'))
        throw new BandSoxError('layer-invalid', `${JSON.stringify(key)} holds a NUL`)
      records.values.set(key, text)
    }
  }
  return records
}

function readRecord(bytes: Buffer, at: number): { key: string; value: Buffer; next: number } {
  const space = bytes.indexOf(SPACE, at)
  const digits = space === -1 || space - at > MAX_LENGTH_DIGITS ? '' : bytes.toString('latin1', at, space)
  const length = /^[1-9][0-9]*$/.test(digits) ? Number(digits) : 0
  const end = at + length
  const equals = bytes.indexOf(EQUALS, space)
  if (length === 0 || end > bytes.length || bytes[end - 1] !== NEWLINE || equals <= space + 1 || equals >= end) {
    throw new BandSoxError('layer-invalid', `an extended header has a broken record at its byte ${at}`)
  }
  return { key: bytes.toString('latin1', space + 1, equals), value: bytes.subarray(equals + 1, end - 1), next: end }
}

/** A whole number of a record, as sizes and owners are. @throws `layer-invalid`. */
export function decimal(text: string, name: string): number {
  const value = /^[0-9]{1,16}$/.test(text) ? Number(text) : Number.NaN
  if (Number.isSafeInteger(value)) return value
  throw new BandSoxError('layer-invalid', `${name} is no whole number: ${JSON.stringify(text.slice(0, 40))}`)
}

/** Seconds since 1970, with a fraction or not, before 1970 or not; the fraction is left out. @throws `layer-invalid`. */
export function seconds(text: string, name: string): number {
  const match = /^(-?[0-9]{1,15})(?:\.[0-9]*)?$/.exec(text)
  if (match?.[1] !== undefined) return Number(match[1])
  throw new BandSoxError('layer-invalid', `${name} is no time: ${JSON.stringify(text.slice(0, 40))}`)
}
