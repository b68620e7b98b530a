/**
 * Writes the headers of a tar: `entryHeader` for sqfstar, checked entries in, plain PAX out, whatever their layer looked like; and the
 * parts of which another writer makes its own. No I/O.
 */
import type { Attributes, ByteString, FileKind } from './tar-entry.js'
import { BLOCK } from './tar-header.js'

export interface OutputEntry extends Attributes {
  path: ByteString
  kind: FileKind | 'directory' | 'hardlink'
  target?: ByteString
  device?: { major: number; minor: number }
  /** Bytes of content that follow the header. */
  sizeBytes?: number
}

const typeFlags: Record<OutputEntry['kind'], string> = {
  file: '0',
  hardlink: '1',
  symlink: '2',
  'character-device': '3',
  'block-device': '4',
  directory: '5',
  fifo: '6',
}
const MAX_NAME = 100
/** What seven and eleven octal digits hold. */
const MAX_OWNER = 0o7777777
const MAX_SIZE = 0o77777777777

/** Bytes from the end of `length` bytes of content to the next header. */
export const paddingAfter = (length: number): number => (BLOCK - (length % BLOCK)) % BLOCK

/** All that stands before the content: extended header and header. */
export function entryHeader(entry: OutputEntry): Buffer {
  const { path, uid, gid, xattrs, target = '', sizeBytes = 0 } = entry
  const records: Buffer[] = []
  if (path.length > MAX_NAME) records.push(paxRecord('path', path))
  if (uid > MAX_OWNER) records.push(paxRecord('uid', String(uid)))
  if (gid > MAX_OWNER) records.push(paxRecord('gid', String(gid)))
  if (sizeBytes > MAX_SIZE) records.push(paxRecord('size', String(sizeBytes)))
  for (const [name, value] of xattrs ?? []) records.push(paxRecord(`SCHILY.xattr.${name}`, value))
  const parts: Buffer[] = []
  if (target.length > MAX_NAME) parts.push(longTarget(target))
  if (records.length > 0) {
    const extended = Buffer.concat(records)
    parts.push(headerBlock({ ...entry, path: 'PaxHeader', target: '', uid: 0, gid: 0 }, 'x', extended.length))
    parts.push(padded(extended))
  }
  parts.push(headerBlock(entry, typeFlags[entry.kind], sizeBytes))
  return Buffer.concat(parts)
}

/** What ends a tar. */
export const tarEnd = (): Buffer => Buffer.alloc(2 * BLOCK)

/** GNU's own extension: from a PAX `linkpath`, sqfstar 4.5 takes the leading slash away, for symbolic links too. */
function longTarget(target: ByteString): Buffer {
  const bytes = Buffer.from(`${target}\0`, 'latin1')
  const header = { path: '././@LongLink', kind: 'file', mode: 0, uid: 0, gid: 0, mtime: 0, xattrs: undefined } as const
  return Buffer.concat([headerBlock(header, 'K', bytes.length), padded(bytes)])
}

/** One header. What does not fit is cut short: extended records say it whole. */
export function headerBlock(entry: OutputEntry, type: string, size: number): Buffer {
  const header = Buffer.alloc(BLOCK)
  header.write(entry.path.slice(0, MAX_NAME), 0, 'latin1')
  writeOctal(header, 100, 8, entry.mode)
  writeOctal(header, 108, 8, Math.min(entry.uid, MAX_OWNER))
  writeOctal(header, 116, 8, Math.min(entry.gid, MAX_OWNER))
  writeOctal(header, 124, 12, Math.min(size, MAX_SIZE))
  writeOctal(header, 136, 12, entry.mtime)
  header.write(type, 156, 'latin1')
  header.write((entry.target ?? '').slice(0, MAX_NAME), 157, 'latin1')
  header.write('ustar\x0000', 257, 'latin1')
  writeOctal(header, 329, 8, entry.device?.major ?? 0)
  writeOctal(header, 337, 8, entry.device?.minor ?? 0)
  header.fill(' ', 148, 156)
  let sum = 0
  for (const byte of header) sum += byte
  header.write(`${sum.toString(8).padStart(6, '0')}\0 `, 148, 'latin1')
  return header
}

function writeOctal(header: Buffer, at: number, width: number, value: number): void {
  header.write(value.toString(8).padStart(width - 1, '0'), at, 'latin1')
}

/** One of an extended header. The length counts its own digits. */
export function paxRecord(key: ByteString, value: ByteString | Buffer): Buffer {
  const bytes = typeof value === 'string' ? Buffer.from(value, 'latin1') : value
  const rest = Buffer.concat([Buffer.from(` ${key}=`, 'latin1'), bytes, Buffer.from('\n')])
  let length = rest.length + 1
  while (String(length).length + rest.length !== length) length = String(length).length + rest.length
  return Buffer.concat([Buffer.from(String(length)), rest])
}

/** With zeros up to a whole block. */
export const padded = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc(paddingAfter(bytes.length))])
