/** Writes tars for tests, field by field: right ones, and any wrong one. It shares no code with what it tests. */
import { gzipSync } from 'node:zlib'

const BLOCK = 512

/** What is left out is what an ordinary file of root's has. Text is latin1: one character, one byte. */
export interface TarEntrySpec {
  path?: string
  /** Type flag. */
  type?: string
  mode?: number
  uid?: number
  gid?: number
  mtime?: number
  target?: string
  content?: string | Buffer
  device?: [major: number, minor: number]
  /** What the header says; else the bytes of `content`. */
  size?: number
  /** Records of a PAX header before it, in this order; a key may come many times. */
  pax?: [key: string, value: string | Buffer | number][]
  /** GNU's entries before it, for what does not fit a header. */
  longPath?: string
  longTarget?: string
  /** Default: `ustar`. */
  format?: 'ustar' | 'gnu' | 'v7'
  prefix?: string
  /** Changes the header before its checksum is made. */
  edit?: (header: Buffer) => void
  /** Instead of the right one. */
  checksum?: number
}

type Rest = Omit<TarEntrySpec, 'path' | 'type'>

export const file = (path: string, content: string | Buffer = '', rest: Rest = {}): Buffer =>
  entry({ path, content, ...rest })
export const folder = (path: string, rest: Rest = {}): Buffer => entry({ path, type: '5', mode: 0o755, ...rest })
export const symlink = (path: string, target: string, rest: Rest = {}): Buffer =>
  entry({ path, type: '2', mode: 0o777, target, ...rest })
export const hardlink = (path: string, target: string, rest: Rest = {}): Buffer =>
  entry({ path, type: '1', target, ...rest })
export const whiteout = (path: string): Buffer => file(path.replace(/[^/]*$/, '.wh.$&'))
export const opaque = (path: string): Buffer => file(`${path}/.wh..wh..opq`)
export const character = (path: string, major: number, minor: number, rest: Rest = {}): Buffer =>
  entry({ path, type: '3', mode: 0o666, device: [major, minor], ...rest })
export const block = (path: string, major: number, minor: number, rest: Rest = {}): Buffer =>
  entry({ path, type: '4', mode: 0o660, device: [major, minor], ...rest })

/** A whole tar: entries, and the two empty blocks at the end. */
export const tar = (...entries: Buffer[]): Buffer => Buffer.concat([...entries, tarEnd])
export const tarEnd: Buffer = Buffer.alloc(2 * BLOCK)
export const gzip = (tarred: Buffer): Buffer => gzipSync(tarred)

export function entry(spec: TarEntrySpec): Buffer {
  const { path = '', target = '', content = '', pax = [], longPath, longTarget } = spec
  const bytes = typeof content === 'string' ? Buffer.from(content, 'latin1') : content
  const has = (key: string): boolean => pax.some(([name]) => name === key)
  const records: [string, string | Buffer | number][] = [...pax]
  if (path.length > 100 && longPath === undefined && !has('path')) records.push(['path', path])
  if (target.length > 100 && longTarget === undefined && !has('linkpath')) records.push(['linkpath', target])
  const parts: Buffer[] = []
  if (longTarget !== undefined) parts.push(extension('K', Buffer.from(`${longTarget}\0`, 'latin1')))
  if (longPath !== undefined) parts.push(extension('L', Buffer.from(`${longPath}\0`, 'latin1')))
  if (records.length > 0) parts.push(extension('x', Buffer.concat(records.map((each) => paxRecord(...each)))))
  return Buffer.concat([...parts, header(spec, spec.size ?? bytes.length), padded(bytes)])
}

/** An entry about the next one, with any bytes: `x`, `g`, `L`, `K`. */
export const extension = (type: string, content: Buffer): Buffer =>
  Buffer.concat([header({ path: '././@LongLink', type, mode: 0 }, content.length), padded(content)])

export function paxRecord(key: string, value: string | Buffer | number): Buffer {
  const body = Buffer.concat([
    Buffer.from(` ${key}=`, 'latin1'),
    typeof value === 'object' ? value : Buffer.from(String(value), 'latin1'),
    Buffer.from('\n'),
  ])
  const lengths = [1, 2, 3, 4, 5, 6, 7].map((digits) => digits + body.length)
  const length = lengths.find((sum, index) => String(sum).length === index + 1)
  return Buffer.concat([Buffer.from(String(length)), body])
}

export function header(spec: TarEntrySpec, size: number): Buffer {
  const { path = '', type = '0', mode = 0o644, uid = 0, gid = 0, mtime = 0, target = '', format = 'ustar' } = spec
  const bytes = Buffer.alloc(BLOCK)
  bytes.write(path.slice(0, 100), 0, 'latin1')
  writeNumber(bytes, 100, 8, mode)
  writeNumber(bytes, 108, 8, uid)
  writeNumber(bytes, 116, 8, gid)
  writeNumber(bytes, 124, 12, size)
  writeNumber(bytes, 136, 12, mtime)
  bytes.write(type, 156, 'latin1')
  bytes.write(target.slice(0, 100), 157, 'latin1')
  if (format !== 'v7') bytes.write(format === 'gnu' ? 'ustar  \0' : 'ustar\x0000', 257, 'latin1')
  if (spec.device !== undefined) {
    writeNumber(bytes, 329, 8, spec.device[0])
    writeNumber(bytes, 337, 8, spec.device[1])
  }
  if (spec.prefix !== undefined) bytes.write(spec.prefix, 345, 'latin1')
  spec.edit?.(bytes)
  writeChecksum(bytes, spec.checksum)
  return bytes
}

/** @param told Instead of the right one. */
export function writeChecksum(bytes: Buffer, told?: number): void {
  bytes.fill(' ', 148, 156)
  const sum = bytes.subarray(0, BLOCK).reduce((total, byte) => total + byte, 0)
  bytes.write(`${(told ?? sum).toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
}

/** Octal where it fits, else base 256, as GNU tar has it. */
export function writeNumber(bytes: Buffer, at: number, width: number, value: number): void {
  const octal = value < 0 ? '' : value.toString(8)
  if (value >= 0 && octal.length < width) {
    bytes.write(octal.padStart(width - 1, '0'), at, 'latin1')
    return
  }
  for (let index = width - 1, rest = BigInt(value); index >= 0; index--, rest >>= 8n) {
    bytes[at + index] = Number(rest & 0xffn)
  }
  bytes[at] = value < 0 ? 0xff : 0x80
}

export type SparseFormat = 'gnu' | 'pax-0.0' | 'pax-0.1' | 'pax-1.0'

export interface SparseSpec {
  sizeBytes: number | string
  /** Offset and length each. */
  map: [offset: number | string, length: number | string][]
  /** The bytes of all parts, one after the other. */
  data: string
}

/** A sparse file in one of the four formats, with a map that may be right or wrong. */
export function sparseFile(path: string, format: SparseFormat, { sizeBytes, map, data }: SparseSpec): Buffer {
  const stored = Buffer.from(data, 'latin1')
  const numbers = map.flat()
  switch (format) {
    case 'gnu':
      return oldSparseFile(path, Number(sizeBytes), numbers.map(Number), stored)
    case 'pax-0.0':
      return entry({
        path,
        content: stored,
        pax: [
          ['GNU.sparse.size', sizeBytes],
          ['GNU.sparse.numblocks', map.length],
          ...map.flatMap(([offset, length]): [string, string | number][] => [
            ['GNU.sparse.offset', offset],
            ['GNU.sparse.numbytes', length],
          ]),
        ],
      })
    case 'pax-0.1':
      return entry({
        path: `GNUSparseFile.0/${path}`,
        content: stored,
        pax: [
          ['GNU.sparse.size', sizeBytes],
          ['GNU.sparse.numblocks', map.length],
          ['GNU.sparse.name', path],
          ['GNU.sparse.map', numbers.join(',')],
        ],
      })
    case 'pax-1.0':
      return entry({
        path: `GNUSparseFile.0/${path}`,
        content: Buffer.concat([padded(Buffer.from([map.length, ...numbers, ''].join('\n'))), stored]),
        pax: [
          ['GNU.sparse.major', 1],
          ['GNU.sparse.minor', 0],
          ['GNU.sparse.name', path],
          ['GNU.sparse.realsize', sizeBytes],
        ],
      })
  }
}

/** Four pairs in the header, and 21 in each block that follows it. */
function oldSparseFile(path: string, sizeBytes: number, numbers: number[], stored: Buffer): Buffer {
  const first = numbers.slice(0, 8)
  const blocks: Buffer[] = []
  for (let at = 8; at < numbers.length; at += 42) {
    const bytes = Buffer.alloc(BLOCK)
    for (const [index, number] of numbers.slice(at, at + 42).entries()) writeNumber(bytes, index * 12, 12, number)
    bytes[504] = at + 42 < numbers.length ? 1 : 0
    blocks.push(bytes)
  }
  const edit = (bytes: Buffer): void => {
    for (const [index, number] of first.entries()) writeNumber(bytes, 386 + index * 12, 12, number)
    bytes[482] = blocks.length > 0 ? 1 : 0
    writeNumber(bytes, 483, 12, sizeBytes)
  }
  const head = header({ path, type: 'S', format: 'gnu', edit }, stored.length)
  return Buffer.concat([head, ...blocks, padded(stored)])
}

export const padded = (bytes: Buffer): Buffer =>
  Buffer.concat([bytes, Buffer.alloc((BLOCK - (bytes.length % BLOCK)) % BLOCK)])
