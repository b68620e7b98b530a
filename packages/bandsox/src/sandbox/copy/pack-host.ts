/**
 * A file or folder of this host as the stream of a copy. Paths are bytes (latin1) throughout: names need not be UTF-8.
 *
 * Node cannot ask where a file has holes, so those of a file with less blocks than bytes are found by reading it: what is zeros is not
 * sent. Extended attributes it cannot read at all.
 */
import { type BigIntStats, constants } from 'node:fs'
import { type FileHandle, lstat, open, readdir, readlink } from 'node:fs/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { type Checksum, createChecksum } from '../../guest/checksum.js'
import type { ByteString, Extent } from '../../tar/tar-entry.js'
import { tarEnd } from '../../tar/tar-writer.js'
import { type StreamEntry, storedBytes, streamHeader } from './entry-header.js'
import { hostError, shown } from './host-error.js'
import type { Selection, Verdict } from './patterns.js'
import type { CopyCounts } from './report.js'

const BLOCK_BYTES = 262_144
/** Headers wait for each other until so many bytes are there: each piece costs a frame. */
const BATCH_BYTES = 65_536
const PAGE_BYTES = 4_096
/** Of a map: well below what readers take. */
const MAX_EXTENTS = 20_000
const BLOCK_UNIT = 512n
const MAX_SKIPPED = 100
const MAX_DEPTH = 512

/** Bytes of a path, for the system. */
const bytesOf = (path: ByteString): Buffer => Buffer.from(path, 'latin1')

export class HostPacker {
  readonly counts = { files: 0, folders: 0, links: 0, bytes: 0, skippedCount: 0 }
  readonly skipped: { path: string; reason: string }[] = []
  /** Of what has been sent, without the line that says the checksum. */
  streamBytes = 0
  xxh64 = ''
  readonly #top: ByteString
  readonly #selection: Selection
  readonly #report: (bytes: number) => void
  /** Files with several names: the first one is what the others link to. */
  readonly #seen = new Map<string, ByteString>()
  /** Folders above that are taken only when something below is. */
  #waiting: StreamEntry[] = []
  #held: Buffer[] = []
  #heldBytes = 0
  #checksum: Checksum | undefined

  /** @param top Absolute. @param report Told of the content's bytes. */
  constructor(top: string, selection: Selection, report: (bytes: number) => void) {
    this.#top = Buffer.from(top).toString('latin1')
    this.#selection = selection
    this.#report = report
  }

  get result(): CopyCounts {
    return { ...this.counts, skipped: this.skipped }
  }

  /** @throws `file-not-found`, `permission-denied`, `file-error`, each with the file's name. */
  async *stream(): AsyncGenerator<Buffer> {
    this.#checksum = await createChecksum('xxh64')
    yield* this.#file('', this.#selection.top, 0)
    this.#hold(tarEnd())
    for (const piece of this.#flush()) yield piece
    this.xxh64 = this.#checksum.digest()
    yield Buffer.from(`xxh64 ${this.xxh64}\n`)
  }

  #path(below: ByteString): Buffer {
    return bytesOf(below === '' ? this.#top : `${this.#top === '/' ? '' : this.#top}/${below}`)
  }

  async *#file(below: ByteString, verdict: Verdict, depth: number, known?: BigIntStats): AsyncGenerator<Buffer> {
    const path = this.#path(below)
    try {
      const stats = known ?? (await lstat(path, { bigint: true }))
      const entry = {
        path: below === '' ? '.' : below,
        mode: Number(stats.mode) & 0o7777,
        uid: Number(stats.uid),
        gid: Number(stats.gid),
        mtimeNs: stats.mtimeNs,
      }
      if (stats.isDirectory()) yield* this.#folder(entry, below, verdict, depth)
      else if (stats.isFile()) yield* this.#regular(entry, below)
      else if (stats.isSymbolicLink()) {
        const target = (await readlink(path, { encoding: 'buffer' })).toString('latin1')
        this.counts.links++
        yield* this.#begin({ ...entry, kind: 'symlink', target })
      } else if (stats.isFIFO()) yield* this.#begin({ ...entry, kind: 'fifo' })
      else if (stats.isCharacterDevice() || stats.isBlockDevice())
        yield* this.#begin({
          ...entry,
          kind: stats.isBlockDevice() ? 'block-device' : 'character-device',
          device: deviceOf(stats.rdev),
        })
      else if (below === '')
        throw new BandSoxError('file-error', `cannot copy ${shown(this.#top)}: it is neither a file nor a folder`)
      else this.#skip(below, 'a socket')
    } catch (error) {
      throw hostError(error, `read ${shown(path.toString('latin1'))}`)
    }
  }

  async *#folder(
    entry: Omit<StreamEntry, 'kind'>,
    below: ByteString,
    verdict: Verdict,
    depth: number,
  ): AsyncGenerator<Buffer> {
    if (depth > MAX_DEPTH)
      throw new BandSoxError('file-error', `cannot copy ${shown(below)}: it lies more than ${MAX_DEPTH} folders deep`)
    const own: StreamEntry = { ...entry, kind: 'directory' }
    if (below === '' || verdict === 'in') {
      this.counts.folders++
      yield* this.#begin(own)
    } else this.#waiting.push(own)
    const names = (await readdir(this.#path(below), { encoding: 'buffer' })).map((name) => name.toString('latin1'))
    for (const name of names.sort()) {
      const inner = below === '' ? name : `${below}/${name}`
      const stats = await lstat(this.#path(inner), { bigint: true }).catch((error: unknown) => {
        if (isSystemError(error, 'ENOENT')) return undefined // somebody removed it just now
        throw error
      })
      if (stats === undefined) {
        this.#skip(inner, 'it was removed while it was read')
        continue
      }
      const text = bytesOf(inner).toString('utf8')
      const next = this.#selection.of(text, stats.isDirectory(), verdict)
      if (next !== 'out') yield* this.#file(inner, next, depth + 1, stats)
    }
    if (this.#waiting.at(-1) === own) this.#waiting.pop() // nothing in it was taken
  }

  async *#regular(entry: Omit<StreamEntry, 'kind'>, below: ByteString): AsyncGenerator<Buffer> {
    const path = this.#path(below)
    // Without waiting: it may be a FIFO by now.
    const handle = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    try {
      const stats = await handle.stat({ bigint: true })
      if (!stats.isFile()) return this.#skip(below, 'it was replaced while it was read')
      const key = `${stats.dev}:${stats.ino}`
      const first = this.#seen.get(key)
      if (first !== undefined) {
        this.counts.links++
        yield* this.#begin({ ...entry, kind: 'hardlink', target: first })
        return
      }
      if (stats.nlink > 1n) this.#seen.set(key, entry.path)
      const sizeBytes = Number(stats.size)
      const extents = stats.blocks * BLOCK_UNIT < stats.size ? await dataOf(handle, sizeBytes) : undefined
      const file: StreamEntry = { ...entry, kind: 'file', sizeBytes, extents }
      const padding = yield* this.#begin(file)
      for (const extent of extents ?? [{ offset: 0, length: sizeBytes }]) yield* this.#content(handle, extent, below)
      this.#hold(Buffer.alloc(padding))
      this.counts.files++
      this.counts.bytes += storedBytes(file)
    } finally {
      await handle.close()
    }
  }

  async *#content(handle: FileHandle, { offset, length }: Extent, below: ByteString): AsyncGenerator<Buffer> {
    for (let done = 0; done < length; ) {
      // Each time another one: who sends it may keep it until it has arrived.
      const buffer = Buffer.allocUnsafe(Math.min(BLOCK_BYTES, length - done))
      const { bytesRead } = await handle.read(buffer, 0, buffer.length, offset + done)
      if (bytesRead === 0) {
        this.#skip(below, 'it became shorter while it was read: its end is zeros')
        for (; done < length; done += BLOCK_BYTES) {
          this.#hold(Buffer.alloc(Math.min(BLOCK_BYTES, length - done)))
          yield* this.#flush()
        }
        return
      }
      done += bytesRead
      this.#report(this.counts.bytes + done)
      this.#hold(buffer.subarray(0, bytesRead))
      if (this.#heldBytes >= BATCH_BYTES) yield* this.#flush()
    }
  }

  /** Behind the folders that were waiting for something. @returns The zeros that follow the content. */
  async *#begin(entry: StreamEntry): AsyncGenerator<Buffer, number> {
    for (const folder of this.#waiting.splice(0)) {
      this.counts.folders++
      this.#hold(streamHeader(folder).header)
    }
    const { header, padding } = streamHeader(entry)
    this.#hold(header)
    if (this.#heldBytes >= BATCH_BYTES) yield* this.#flush()
    return padding
  }

  #hold(piece: Buffer): void {
    if (piece.length === 0) return
    this.#checksum?.update(piece)
    this.streamBytes += piece.length
    this.#held.push(piece)
    this.#heldBytes += piece.length
  }

  *#flush(): Generator<Buffer> {
    if (this.#heldBytes === 0) return
    const [only] = this.#held
    const piece = this.#held.length === 1 && only !== undefined ? only : Buffer.concat(this.#held, this.#heldBytes)
    this.#held = []
    this.#heldBytes = 0
    yield piece
  }

  #skip(below: ByteString, reason: string): void {
    this.counts.skippedCount++
    if (this.skipped.length < MAX_SKIPPED) this.skipped.push({ path: bytesOf(below).toString('utf8'), reason })
  }
}

/** As gnu_dev_major and gnu_dev_minor of glibc take a number apart. */
const deviceOf = (rdev: bigint): { major: number; minor: number } => ({
  major: Number(((rdev >> 8n) & 0xfffn) | ((rdev >> 32n) & 0xfffff000n)),
  minor: Number((rdev & 0xffn) | ((rdev >> 12n) & 0xffffff00n)),
})

const ZEROS = Buffer.alloc(PAGE_BYTES)

/** Where a file is not zeros, by pages. @returns undefined where that is everywhere. */
async function dataOf(handle: FileHandle, sizeBytes: number): Promise<Extent[] | undefined> {
  const extents: { offset: number; length: number }[] = []
  const buffer = Buffer.allocUnsafe(4 * BLOCK_BYTES)
  for (let offset = 0; offset < sizeBytes; ) {
    const { bytesRead } = await handle.read(buffer, 0, Math.min(buffer.length, sizeBytes - offset), offset)
    if (bytesRead === 0) break
    for (let at = 0; at < bytesRead; at += PAGE_BYTES) {
      const page = buffer.subarray(at, Math.min(at + PAGE_BYTES, bytesRead))
      if (page.equals(page.length === PAGE_BYTES ? ZEROS : ZEROS.subarray(0, page.length))) continue
      const last = extents.at(-1)
      if (last !== undefined && last.offset + last.length === offset + at) last.length += page.length
      else extents.push({ offset: offset + at, length: page.length })
    }
    offset += bytesRead
  }
  const [first] = extents
  if (extents.length === 1 && first?.length === sizeBytes) return undefined
  return coalesced(extents)
}

/** Joins extents until there are few enough for a map: the smallest holes are sent as zeros. */
function coalesced(all: Extent[]): Extent[] {
  let extents = all
  for (let gap = 2 * PAGE_BYTES; extents.length > MAX_EXTENTS; gap *= 2) {
    const joined: { offset: number; length: number }[] = []
    for (const { offset, length } of extents) {
      const last = joined.at(-1)
      if (last !== undefined && offset - (last.offset + last.length) <= gap) last.length = offset + length - last.offset
      else joined.push({ offset, length })
    }
    extents = joined
  }
  return extents
}
