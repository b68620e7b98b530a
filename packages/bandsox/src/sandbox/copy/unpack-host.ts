/**
 * The stream of a copy, made into files of this host. The guest is hostile: nothing is made but below a folder of our own that nobody
 * else may enter, into which every step leads through folders that this stream made; only when all has come and its checksum is
 * right, it is moved to where it shall be.
 */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import {
  chmod,
  type FileHandle,
  link,
  lstat,
  lutimes,
  mkdir,
  open,
  rename,
  rm,
  statfs,
  symlink,
  utimes,
} from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { type Checksum, createChecksum } from '../../guest/checksum.js'
import { runCommand } from '../../process/run.js'
import type { ByteString, TarEntry } from '../../tar/tar-entry.js'
import { TarReader } from '../../tar/tar-reader.js'
import { hostError, shown } from './host-error.js'
import { mergeInto, requireMergeable } from './merge.js'

/** Of one copy: each costs the host an inode, and this program some memory. */
const MAX_ENTRIES = 2_000_000
const MAX_DEPTH = 512
/** More of a fraction than any file system keeps. */
const MAX_TIME_CHARACTERS = 40
/** Of the names of all folders of one copy, which are kept until its end. */
const MAX_FOLDER_NAME_BYTES = 16 * 1024 * 1024
/** Linux: PATH_MAX and NAME_MAX. */
const MAX_PATH_BYTES = 4_096
const MAX_NAME_BYTES = 255
/** Left free on the host's disk: a full one takes everything else on the host down. */
const RESERVE_BYTES = 64 * 1024 * 1024
/** Between two looks at how much is free. */
const LOOK_EVERY_BYTES = 16 * 1024 * 1024
const LOOK_EVERY_ENTRIES = 4_096
const MAX_SKIPPED = 100
/** Set-id bits of a guest's file must not become the host's. */
const PERMISSIONS = 0o777
const ROOT = 'root'

/** What a folder gets at the end. Not its whole entry: a guest may give each one 64 KiB of extended attributes. */
type FolderEntry = Pick<TarEntry, 'mode' | 'mtime'> & { exactMtime: ByteString | undefined }

/** The file whose content is coming. */
interface OpenFile {
  handle: FileHandle
  entry: TarEntry
  below: ByteString
  done: number
}

export class HostUnpacker {
  readonly counts = { files: 0, folders: 0, links: 0, bytes: 0, skippedCount: 0 }
  readonly skipped: { path: string; reason: string }[] = []
  streamBytes = 0
  readonly #target: string
  readonly #report: (bytes: number) => void
  readonly #reader: TarReader
  readonly #entries: TarEntry[] = []
  #checksum: Checksum | undefined
  #stage: string | undefined
  /** Folders that this stream made, below the root, which is ''. */
  readonly #folders = new Map<ByteString, FolderEntry>()
  #folderNameBytes = 0
  #count = 0
  #unlooked = Number.POSITIVE_INFINITY
  #file: OpenFile | undefined

  /** @param target Absolute: what the stream's root shall be. @param report Told of the content's bytes. */
  constructor(target: string, report: (bytes: number) => void) {
    this.#target = target
    this.#report = report
    this.#reader = new TarReader((entry) => this.#entries.push(entry))
  }

  async begin(): Promise<void> {
    this.#checksum = await createChecksum('xxh64')
    const isFolder = await lstat(this.#target).then(
      (stats) => stats.isDirectory(),
      () => false, // not there, or not to be seen, which shows when the stage is made beside it
    )
    const name = `bandsox-copy-${randomBytes(6).toString('hex')}`
    // On the same file system as what it becomes.
    const stage = isFolder
      ? path.join(this.#target, `.${name}`)
      : path.join(path.dirname(this.#target), `.${path.basename(this.#target).slice(0, 60)}.${name}`)
    try {
      await mkdir(stage, 0o700)
    } catch (error) {
      throw hostError(error, `write ${this.#target}`)
    }
    this.#stage = stage
  }

  /** @throws `guest-protocol` for what an honest guest does not send, `no-space`, `file-error`: each with the entry's name. */
  async write(data: Buffer): Promise<void> {
    const base = this.streamBytes
    this.streamBytes += data.length
    this.#checksum?.update(data)
    this.#read(() => this.#reader.write(data))
    await this.#feed(data, base)
    for (const entry of this.#entries.splice(0)) {
      await this.#begin(entry)
      await this.#feed(data, base)
    }
  }

  /** Says that all has come. @returns The checksum of it. */
  async finish(): Promise<string> {
    this.#read(() => this.#reader.end())
    if (this.#file !== undefined) throw broken('', 'its content is cut short')
    if (this.#count === 0) throw broken('', 'nothing came')
    return this.#checksum?.digest() ?? ''
  }

  /** Moves all into its place. What is in the way is found before anything is changed. */
  async commit(): Promise<void> {
    const root = this.#path('')
    await requireMergeable(root, Buffer.from(this.#target))
    for (const [below, entry] of [...this.#folders].reverse()) {
      await this.#attempt(below, async () => {
        await chmod(this.#path(below), entry.mode & PERMISSIONS)
        await utimes(this.#path(below), ...timesOf(entry))
      })
    }
    await mergeInto(root, Buffer.from(this.#target))
    await this.discard()
  }

  /** Removes what was not committed; harmless after `commit`. */
  async discard(): Promise<void> {
    const [stage, file] = [this.#stage, this.#file]
    this.#stage = this.#file = undefined
    try {
      await file?.handle.close()
    } finally {
      if (stage !== undefined) await rm(stage, { recursive: true, force: true })
    }
  }

  #path(below: ByteString): Buffer {
    if (this.#stage === undefined) throw new BandSoxError('internal', 'a copy was written before it was begun')
    const root = Buffer.from(`${this.#stage}/${ROOT}`)
    return below === '' ? root : Buffer.concat([root, Buffer.from(`/${below}`, 'latin1')])
  }

  /** The reader speaks of layers, whose streams it reads as well. */
  #read(act: () => void): void {
    try {
      act()
    } catch (error) {
      if (!(error instanceof BandSoxError)) throw error
      throw new BandSoxError('guest-protocol', `the guest's stream is broken: ${error.message}`, { cause: error })
    }
  }

  async #begin(entry: TarEntry): Promise<void> {
    const below = this.#placeOf(entry.path)
    if (this.#file !== undefined) throw new BandSoxError('internal', 'an entry began in the middle of another')
    this.#requireParent(below, entry)
    if (++this.#count > MAX_ENTRIES) throw broken(below, `there are more than ${MAX_ENTRIES} entries`)
    this.#unlooked += LOOK_EVERY_BYTES / LOOK_EVERY_ENTRIES
    await this.#attempt(below, () => this.#make(entry, below))
  }

  async #make(entry: TarEntry, below: ByteString): Promise<void> {
    const own = this.#path(below)
    switch (entry.kind) {
      case 'directory':
        await this.#look()
        await mkdir(own, 0o700)
        this.#keepFolder(below, entry)
        this.counts.folders++
        return
      case 'file':
        await this.#openFile(entry, below, own)
        return
      case 'symlink':
        await this.#look()
        await symlink(Buffer.from(entry.target, 'latin1'), own)
        await lutimes(own, ...timesOf(entry))
        this.counts.links++
        return
      case 'hardlink':
        await this.#hardLink(entry, below, own)
        return
      case 'fifo':
        await this.#makeFifo(entry, below, own)
        return
      default:
        if (below === '') throw new BandSoxError('file-error', 'cannot copy a device to this host')
        this.#skip(below, 'a device')
    }
  }

  #keepFolder(below: ByteString, { mode, mtime, exactMtime }: TarEntry): void {
    this.#folderNameBytes += below.length
    if (this.#folderNameBytes > MAX_FOLDER_NAME_BYTES)
      throw broken(below.slice(0, 100), `the names of its folders have more than ${MAX_FOLDER_NAME_BYTES} bytes`)
    // Through a buffer: a slice would keep the whole text.
    const time = exactMtime && Buffer.from(exactMtime.slice(0, MAX_TIME_CHARACTERS), 'latin1').toString('latin1')
    this.#folders.set(below, { mode, mtime, exactMtime: time })
  }

  async #openFile(entry: TarEntry, below: ByteString, own: Buffer): Promise<void> {
    const flags = constants.O_CREAT | constants.O_EXCL | constants.O_WRONLY | constants.O_NOFOLLOW
    const handle = await open(own, flags, 0o600)
    this.#file = { handle, entry, below, done: 0 }
    if (entry.content.storedBytes === 0) await this.#closeFile(this.#file)
  }

  async #hardLink(entry: TarEntry, below: ByteString, own: Buffer): Promise<void> {
    const target = this.#placeOf(entry.target)
    this.#requireParent(target, entry)
    if (!(await lstat(this.#path(target))).isFile()) throw broken(below, 'it is a hard link to what is no file')
    await link(this.#path(target), own)
    this.counts.links++
  }

  /** Under a name of our own first: the guest's may not be text, which a program's arguments must be. */
  async #makeFifo(entry: TarEntry, below: ByteString, own: Buffer): Promise<void> {
    const made = `${this.#stage}/fifo`
    try {
      await runCommand(['mkfifo', '-m', (entry.mode & PERMISSIONS).toString(8), '--', made])
    } catch (error) {
      if (!(error instanceof BandSoxError && error.code === 'host-missing')) throw error
      this.#skip(below, 'a FIFO, which this host has no mkfifo for')
      return
    }
    await rename(made, own)
    await utimes(own, ...timesOf(entry))
  }

  /** Writes what a chunk has of the open file. @param base Where in the stream the chunk begins. */
  async #feed(data: Buffer, base: number): Promise<void> {
    const file = this.#file
    if (file === undefined) return
    const { position, storedBytes } = file.entry.content
    const start = position + file.done - base
    if (start >= data.length) return
    const piece = data.subarray(start, start + storedBytes - file.done)
    await this.#attempt(file.below, async () => {
      await this.#writePiece(file, piece)
      this.counts.bytes += piece.length
      this.#report(this.counts.bytes)
      if (file.done === storedBytes) await this.#closeFile(file)
    })
  }

  async #writePiece(file: OpenFile, all: Buffer): Promise<void> {
    let piece = all
    const { sizeBytes, extents = [{ offset: 0, length: sizeBytes }] } = file.entry.content
    this.#unlooked += piece.length
    await this.#look()
    let before = 0
    for (const { offset, length } of extents) {
      const skip = file.done - before
      before += length
      if (skip >= length) continue
      let part = piece.subarray(0, length - skip)
      piece = piece.subarray(part.length)
      let at = offset + skip
      file.done += part.length
      while (part.length > 0) {
        const { bytesWritten } = await file.handle.write(part, 0, part.length, at)
        part = part.subarray(bytesWritten)
        at += bytesWritten
      }
      if (piece.length === 0) return
    }
  }

  async #closeFile({ handle, entry }: OpenFile): Promise<void> {
    if (entry.content.extents !== undefined) await handle.truncate(entry.content.sizeBytes)
    await handle.chmod(entry.mode & PERMISSIONS)
    await handle.utimes(...timesOf(entry))
    this.#file = undefined
    await handle.close()
    this.counts.files++
  }

  /** What really takes room, not what a sparse file says: looked at before so much more is written. */
  async #look(): Promise<void> {
    if (this.#unlooked < LOOK_EVERY_BYTES) return
    this.#unlooked = 0
    const { bavail, bsize, files, ffree } = await statfs(this.#stage ?? '')
    if (bavail * bsize < RESERVE_BYTES + LOOK_EVERY_BYTES)
      throw new BandSoxError('no-space', `cannot write ${this.#target}: ${bavail * bsize} bytes are free on the host`)
    if (files > 0 && ffree < 2 * LOOK_EVERY_ENTRIES)
      throw new BandSoxError('no-space', `cannot write ${this.#target}: ${ffree} more files fit on the host`)
  }

  /** @returns A path below the root, '' for that itself. */
  #placeOf(name: ByteString): ByteString {
    if (name.startsWith('/')) throw broken(name, 'its name is absolute')
    if (name.length > MAX_PATH_BYTES) throw broken(name.slice(0, 100), 'its name is too long')
    const parts = name.split('/').filter((part) => part !== '' && part !== '.')
    if (parts.includes('..')) throw broken(name, 'its name leads out of the copy')
    if (parts.length > MAX_DEPTH) throw broken(name.slice(0, 100), `it lies more than ${MAX_DEPTH} folders deep`)
    if (parts.some((part) => part.length > MAX_NAME_BYTES || part.includes('\0')))
      throw broken(name.slice(0, 100), 'a name in it is too long')
    return parts.join('/')
  }

  /** Only folders that this stream made: so no way leads through a link, of the stream or of anybody. */
  #requireParent(below: ByteString, entry: TarEntry): void {
    if (below === '') {
      if (this.#count > 0) throw broken(entry.path, 'the copied file itself comes twice')
      if (entry.kind === 'hardlink') throw broken(entry.path, 'the copied file itself is a link to nothing')
      return
    }
    const slash = below.lastIndexOf('/')
    if (!this.#folders.has(slash === -1 ? '' : below.slice(0, slash)))
      throw broken(below, 'what it lies in is no folder of the copy')
  }

  async #attempt(below: ByteString, act: () => Promise<void>): Promise<void> {
    try {
      await act()
    } catch (error) {
      if (isSystemError(error, 'EEXIST')) throw broken(below, 'it comes twice')
      throw hostError(error, `make ${shown(below)} of the copy`)
    }
  }

  #skip(below: ByteString, reason: string): void {
    this.counts.skippedCount++
    if (this.skipped.length < MAX_SKIPPED)
      this.skipped.push({ path: Buffer.from(below, 'latin1').toString('utf8'), reason })
  }
}

/** Of the last access, and the last change. As text, since Node takes a negative number for now; some hundred ns are lost in it. */
function timesOf({
  mtime,
  exactMtime,
}: Pick<FolderEntry, 'mtime'> & { exactMtime?: ByteString | undefined }): [string, string] {
  const seconds = exactMtime ?? String(mtime)
  return [seconds, seconds]
}

const broken = (below: ByteString, why: string): BandSoxError =>
  new BandSoxError('guest-protocol', `the guest's copy is not honest: ${shown(below)}: ${why}`)
