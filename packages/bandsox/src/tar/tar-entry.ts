/** One file of a layer, as its tar describes it. */
import { printableLine } from '@bandsox/sdk'

export type FileKind = 'file' | 'symlink' | 'character-device' | 'block-device' | 'fifo'
export type EntryKind = FileKind | 'directory' | 'hardlink'

/**
 * Text whose every character is one byte (latin1): names in a tar are bytes, of any encoding or none, and must come out as
 * they went in. Only for the eyes of people it is decoded, by {@link readable}.
 */
export type ByteString = string

export const readable = (bytes: ByteString): string =>
  JSON.stringify(printableLine(Buffer.from(bytes, 'latin1').toString('utf8')))

export interface Attributes {
  /** Permission bits with setuid, setgid and sticky: 0–0o7777. */
  mode: number
  uid: number
  gid: number
  /** Whole seconds since 1970, from 0 to 2^32−1: what a squashfs can hold. */
  mtime: number
  xattrs: ReadonlyMap<ByteString, Buffer> | undefined
}

/** `length` bytes of a file at `offset`; what lies between extents is zeros. */
export interface Extent {
  offset: number
  length: number
}

export interface Content {
  /** Where in the tar its bytes begin. */
  position: number
  /** Bytes in the tar: those of all extents together. */
  storedBytes: number
  /** Bytes of the file. */
  sizeBytes: number
  /** Of a sparse file; else all of it is stored. */
  extents: readonly Extent[] | undefined
}

export interface TarEntry extends Attributes {
  kind: EntryKind
  /** As written in the tar, not checked. */
  path: ByteString
  /** Target of a symbolic or hard link; else empty. */
  target: ByteString
  device: { major: number; minor: number }
  /** As its extended header has it, with a fraction and before 1970 as well: for who can keep more than `mtime`. */
  exactMtime?: ByteString
  content: Content
}
