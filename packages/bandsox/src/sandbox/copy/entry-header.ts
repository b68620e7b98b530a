/** Headers of a copy's stream: POSIX pax, with times to the nanosecond and sparse files in GNU's format 1.0. No I/O. */
import type { ByteString, Extent, FileKind } from '../../tar/tar-entry.js'
import { headerBlock, padded, paddingAfter, paxRecord } from '../../tar/tar-writer.js'

export interface StreamEntry {
  path: ByteString
  kind: FileKind | 'directory' | 'hardlink'
  target?: ByteString
  mode: number
  uid: number
  gid: number
  /** Since 1970. */
  mtimeNs: bigint
  device?: { major: number; minor: number }
  /** Of a file, with its holes. */
  sizeBytes?: number
  /** Of a sparse file. */
  extents?: readonly Extent[] | undefined
}

const MAX_NAME = 100
const MAX_OWNER = 0o7777777
const MAX_NUMBER = 0o77777777777
const NS = 1_000_000_000n
const MAP_BLOCK = 512

const typeFlags: Record<StreamEntry['kind'], string> = {
  ...{
    file: '0',
    hardlink: '1',
    symlink: '2',
    'character-device': '3',
    'block-device': '4',
    directory: '5',
    fifo: '6',
  },
}

/** Bytes of content that follow the header. */
export const storedBytes = ({ extents, sizeBytes = 0 }: StreamEntry): number =>
  extents === undefined ? sizeBytes : extents.reduce((sum, { length }) => sum + length, 0)

/** @returns All that stands before the content, and how many zeros follow it. */
export function streamHeader(entry: StreamEntry): { header: Buffer; padding: number } {
  const { path, target = '', uid, gid, mtimeNs, sizeBytes = 0, extents } = entry
  const records: Buffer[] = []
  const map = extents === undefined ? Buffer.alloc(0) : sparseMap(extents, sizeBytes)
  let name = path
  if (extents !== undefined) {
    records.push(paxRecord('GNU.sparse.major', '1'), paxRecord('GNU.sparse.minor', '0'))
    records.push(paxRecord('GNU.sparse.name', path), paxRecord('GNU.sparse.realsize', String(sizeBytes)))
    // For readers that know no sparse files, and would take this for one of them.
    const slash = path.lastIndexOf('/')
    name = `${path.slice(0, slash + 1)}GNUSparseFile.0/${path.slice(slash + 1)}`
  }
  const size = storedBytes(entry) + map.length
  if (needsRecord(name)) records.push(paxRecord('path', name))
  if (needsRecord(target)) records.push(paxRecord('linkpath', target))
  if (uid > MAX_OWNER) records.push(paxRecord('uid', String(uid)))
  if (gid > MAX_OWNER) records.push(paxRecord('gid', String(gid)))
  if (size > MAX_NUMBER) records.push(paxRecord('size', String(size)))
  const seconds = Number((mtimeNs - (((mtimeNs % NS) + NS) % NS)) / NS)
  if (mtimeNs % NS !== 0n || seconds < 0 || seconds > MAX_NUMBER) records.push(paxRecord('mtime', timeText(mtimeNs)))
  const mtime = Math.min(Math.max(seconds, 0), MAX_NUMBER)
  const plain = { ...entry, path: name, target, mtime, xattrs: undefined }
  const parts: Buffer[] = []
  if (records.length > 0) {
    const extended = Buffer.concat(records)
    parts.push(headerBlock({ ...plain, path: 'PaxHeader', target: '', uid: 0, gid: 0 }, 'x', extended.length))
    parts.push(padded(extended))
  }
  parts.push(headerBlock(plain, typeFlags[entry.kind], size), map)
  return { header: Buffer.concat(parts), padding: paddingAfter(size) }
}

/** It does not fit, or would be read in an unknown encoding. */
const needsRecord = (name: ByteString): boolean => name.length > MAX_NAME || /[\x80-\xff]/.test(name)

function timeText(ns: bigint): string {
  const [sign, size] = ns < 0n ? ['-', -ns] : ['', ns]
  return `${sign}${size / NS}.${String(size % NS).padStart(9, '0')}`
}

function sparseMap(extents: readonly Extent[], sizeBytes: number): Buffer {
  const last = extents.at(-1)
  const ends = last !== undefined && last.offset + last.length === sizeBytes
  const all = ends ? extents : [...extents, { offset: sizeBytes, length: 0 }] // as GNU tar does
  const text = Buffer.from(
    `${all.length}\n${all.map(({ offset, length }) => `${offset}\n${length}\n`).join('')}`,
    'latin1',
  )
  return Buffer.concat([text, Buffer.alloc((MAP_BLOCK - (text.length % MAP_BLOCK)) % MAP_BLOCK)])
}
