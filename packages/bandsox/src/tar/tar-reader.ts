/**
 * Reads the entries of a tar as its bytes come, without their contents: what it tells is where those lie.
 *
 * A tar is a row of 512-byte headers, each followed by its file's bytes, padded. What does not fit a header comes in entries
 * of its own before it: PAX records (`x`), long names (`L`, `K`). The reader is told apart from others by what it refuses; what
 * it takes, it takes as Go's archive/tar does, which all container engines read layers with.
 */
import { BandSoxError } from '@bandsox/sdk'
import { MAX_EXTENSION_BYTES } from './limits.js'
import { decimal, type PaxRecords, parsePax, seconds } from './pax.js'
import { type PaxSparse, parseDataMap, sparseContent, sparseOf } from './sparse.js'
import type { ByteString, Content, EntryKind, TarEntry } from './tar-entry.js'
import { BLOCK, type Header, isZeroBlock, oldSparsePairs, oldSparseSize, parseHeader } from './tar-header.js'

const kinds: Record<string, EntryKind> = {
  '0': 'file',
  '\0': 'file',
  '7': 'file', // "contiguous", a file like any other since the seventies
  S: 'file', // GNU's old sparse file
  '1': 'hardlink',
  '2': 'symlink',
  '3': 'character-device',
  '4': 'block-device',
  '5': 'directory',
  '6': 'fifo',
}
const MAX_TIME = 2 ** 32 - 1
/** uid_t and gid_t; the last value means "no change" to the kernel. */
const MAX_OWNER = 2 ** 32 - 2

/** What has been gathered about the entry that comes next. */
interface Pending {
  pax: PaxRecords | undefined
  longPath: ByteString | undefined
  longTarget: ByteString | undefined
}

const nothingPending: Pending = { pax: undefined, longPath: undefined, longTarget: undefined }

/** What the next bytes are, and how many of them are needed to go on. */
type Expected =
  | { what: 'header' }
  | { what: 'extension'; type: string; bytes: number }
  | { what: 'old-sparse'; header: Header; sizeBytes: number; pairs: number[]; mapBytes: number }
  | { what: 'sparse-map'; header: Header; sparse: PaxSparse; bytes: number }

export class TarReader {
  readonly #onEntry: (entry: TarEntry) => void
  #expected: Expected = { what: 'header' }
  #pending: Pending = nothingPending
  /** Bytes that came and were not understood yet; bounded by what is expected. */
  #held: Buffer[] = []
  #heldBytes = 0
  /** Bytes to pass over: contents and padding. */
  #skip = 0
  /** Bytes of the tar that were understood or passed over. */
  #position = 0
  #zeroBlocks = 0

  constructor(onEntry: (entry: TarEntry) => void) {
    this.#onEntry = onEntry
  }

  /** @throws `layer-invalid` with the place in the tar. */
  write(chunk: Buffer): void {
    try {
      this.#write(chunk)
    } catch (error) {
      if (!(error instanceof BandSoxError) || error.code !== 'layer-invalid') throw error
      throw new BandSoxError('layer-invalid', `at byte ${this.#position}: ${error.message}`, { cause: error })
    }
  }

  /** @throws `layer-invalid` when the tar ends within an entry. */
  end(): void {
    if (
      this.#skip === 0 &&
      this.#heldBytes === 0 &&
      this.#expected.what === 'header' &&
      this.#pending === nothingPending
    ) {
      return // without the two empty blocks at the end, too: some writers forget them
    }
    throw new BandSoxError('layer-invalid', `it is cut short, at byte ${this.#position + this.#heldBytes}`)
  }

  #write(chunk: Buffer): void {
    let rest = chunk
    while (rest.length > 0) {
      if (this.#zeroBlocks >= 2) {
        this.#position += rest.length // behind the end; padding to whole records, mostly
        return
      }
      if (this.#skip > 0) {
        const passed = Math.min(this.#skip, rest.length)
        this.#skip -= passed
        this.#position += passed
        rest = rest.subarray(passed)
        continue
      }
      const wanted = this.#wantedBytes() - this.#heldBytes
      const taken = rest.subarray(0, wanted)
      rest = rest.subarray(taken.length)
      if (this.#heldBytes === 0 && taken.length === wanted) {
        this.#take(taken)
        continue
      }
      this.#held.push(taken)
      this.#heldBytes += taken.length
      if (taken.length < wanted) return
      const all = Buffer.concat(this.#held, this.#heldBytes)
      this.#held = []
      this.#heldBytes = 0
      this.#take(all)
    }
  }

  #wantedBytes(): number {
    const { what } = this.#expected
    if (what === 'extension' || what === 'sparse-map') return this.#expected.bytes
    return BLOCK
  }

  /** @param bytes As many as were wanted. */
  #take(bytes: Buffer): void {
    const expected = this.#expected
    switch (expected.what) {
      case 'header':
        this.#takeHeader(bytes)
        return
      case 'extension':
        this.#takeExtension(expected.type, bytes)
        this.#position += bytes.length
        this.#skip = padding(bytes.length)
        this.#expected = { what: 'header' }
        return
      case 'old-sparse': {
        const { pairs, more } = oldSparsePairs(bytes, 'extension')
        this.#position += BLOCK
        expected.pairs.push(...pairs)
        expected.mapBytes += BLOCK
        this.#takeOldSparse(expected, more)
        return
      }
      case 'sparse-map':
        this.#takeSparseMap(expected, bytes)
        return
    }
  }

  #takeHeader(block: Buffer): void {
    if (isZeroBlock(block)) {
      this.#zeroBlocks++
      this.#position += BLOCK
      return
    }
    if (this.#zeroBlocks > 0) throw new BandSoxError('layer-invalid', 'an empty block is followed by another header')
    const header = parseHeader(block)
    switch (header.type) {
      case 'x':
      case 'L':
      case 'K':
        if (header.size > MAX_EXTENSION_BYTES) {
          throw new BandSoxError(
            'layer-invalid',
            `an extended header has ${header.size} bytes, over ${MAX_EXTENSION_BYTES}`,
          )
        }
        this.#position += BLOCK
        if (header.size > 0) this.#expected = { what: 'extension', type: header.type, bytes: header.size }
        return
      case 'g': // about all entries that follow; no engine heeds it in a layer
      case 'V': // the label of a tape
        this.#position += BLOCK
        this.#skip = header.size + padding(header.size)
        return
    }
    if (kinds[header.type] === undefined) {
      throw new BandSoxError('layer-invalid', `an entry has the unknown type ${JSON.stringify(header.type)}`)
    }
    this.#position += BLOCK
    if (header.type === 'S') {
      const { pairs, more } = oldSparsePairs(block, 'header')
      this.#takeOldSparse({ what: 'old-sparse', header, sizeBytes: oldSparseSize(block), pairs, mapBytes: BLOCK }, more)
      return
    }
    const { pax } = this.#pending
    const isFile = kinds[header.type] === 'file'
    const storedBytes = isFile ? decimalOr(pax, 'size', header.size) : 0
    const sparse = isFile && pax !== undefined ? sparseOf(pax) : undefined
    if (sparse?.map === 'in-data') {
      if (storedBytes < BLOCK) throw new BandSoxError('layer-invalid', 'a sparse file has no map')
      const sized = { ...header, size: storedBytes }
      this.#expected = { what: 'sparse-map', header: sized, sparse, bytes: BLOCK }
      return
    }
    this.#emit(header, contentOf(this.#position, storedBytes, sparse), sparse?.path)
  }

  #takeExtension(type: string, bytes: Buffer): void {
    if (type === 'x') {
      this.#pending = { ...this.#pending, pax: parsePax(bytes) }
      return
    }
    const end = bytes.indexOf(0)
    const name = bytes.toString('latin1', 0, end === -1 ? bytes.length : end)
    this.#pending = { ...this.#pending, [type === 'L' ? 'longPath' : 'longTarget']: name }
  }

  #takeOldSparse(expected: Expected & { what: 'old-sparse' }, more: boolean): void {
    const { header, sizeBytes, pairs, mapBytes } = expected
    if (mapBytes > MAX_EXTENSION_BYTES) {
      throw new BandSoxError('layer-invalid', `the map of a sparse file has over ${MAX_EXTENSION_BYTES} bytes`)
    }
    if (more) {
      this.#expected = expected
      return
    }
    const storedBytes = decimalOr(this.#pending.pax, 'size', header.size)
    this.#emit(header, sparseContent(this.#position, storedBytes, sizeBytes, pairs))
  }

  #takeSparseMap(expected: Expected & { what: 'sparse-map' }, bytes: Buffer): void {
    const { header, sparse } = expected
    const map = parseDataMap(bytes)
    if (map !== undefined) {
      this.#position += map.mapBytes
      const storedBytes = header.size - map.mapBytes
      this.#emit(header, sparseContent(this.#position, storedBytes, sparse.sizeBytes, map.pairs), sparse.path)
      const ahead = bytes.length - map.mapBytes
      this.#skip -= ahead
      this.#position += ahead
      return
    }
    const more = bytes.length + BLOCK
    if (more > Math.min(header.size, MAX_EXTENSION_BYTES)) {
      throw new BandSoxError('layer-invalid', `the map of a sparse file does not end within ${bytes.length} bytes`)
    }
    // Doubled, since all of it is parsed again: a map of many blocks would cost the square of its length.
    const wanted = Math.min(bytes.length * 2, Math.floor(Math.min(header.size, MAX_EXTENSION_BYTES) / BLOCK) * BLOCK)
    this.#expected = { ...expected, bytes: wanted }
    this.#held = [bytes]
    this.#heldBytes = bytes.length
  }

  /** @param sparsePath What a sparse file's own records call it. */
  #emit(header: Header, content: Content, sparsePath?: ByteString): void {
    const { pax, longPath, longTarget } = this.#pending
    this.#pending = nothingPending
    this.#expected = { what: 'header' }
    const path = sparsePath ?? (longPath || pax?.values.get('path') || header.path)
    const mtime = pax?.values.get('mtime')
    const isOldDirectory = header.type === '\0' && path.endsWith('/')
    if (isOldDirectory && content.storedBytes > 0) {
      // Readers differ in whether bytes follow: two could see two different layers in one blob.
      throw new BandSoxError('layer-invalid', `a folder has ${content.storedBytes} bytes of content`)
    }
    this.#skip = content.storedBytes + padding(content.storedBytes)
    this.#onEntry({
      kind: isOldDirectory ? 'directory' : (kinds[header.type] ?? 'file'),
      path,
      target: longTarget || pax?.values.get('linkpath') || header.linkName,
      mode: header.mode,
      uid: owner(decimalOr(pax, 'uid', header.uid), 'uid'),
      gid: owner(decimalOr(pax, 'gid', header.gid), 'gid'),
      mtime: Math.min(Math.max(mtime ? seconds(mtime, 'mtime') : header.mtime, 0), MAX_TIME),
      xattrs: pax !== undefined && pax.xattrs.size > 0 ? pax.xattrs : undefined,
      device: { major: header.devMajor, minor: header.devMinor },
      ...(mtime && { exactMtime: mtime }),
      content,
    })
  }
}

function contentOf(position: number, storedBytes: number, sparse: PaxSparse | undefined): Content {
  if (sparse?.map === 'in-header') return sparseContent(position, storedBytes, sparse.sizeBytes, sparse.pairs)
  return { position, storedBytes, sizeBytes: storedBytes, extents: undefined }
}

const padding = (bytes: number): number => (BLOCK - (bytes % BLOCK)) % BLOCK

function decimalOr(pax: PaxRecords | undefined, key: string, otherwise: number): number {
  const text = pax?.values.get(key)
  return text === undefined || text === '' ? otherwise : decimal(text, key)
}

function owner(value: number, name: string): number {
  if (value <= MAX_OWNER) return value
  throw new BandSoxError('layer-invalid', `${name} is ${value}, over ${MAX_OWNER}`)
}
