/** Files of the host that a transfer reads or writes: checked before, replaced atomically after. */
import { randomBytes } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, open, rename, rm, stat, statfs } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import type { DownloadSink } from '../guest/download.js'
import { makeFolder } from '../process/make-folder.js'

/** Left free on the host's disk by any download: a full disk takes everything else on the host down. */
const RESERVE_BYTES = 64 * 1024 * 1024
/** A smaller file fills no disk, and the look would be a good part of its transfer. */
const WORTH_A_LOOK_BYTES = 1024 * 1024

/** @throws `file-not-found`, `file-error`, `permission-denied`. The caller closes the handle. */
export async function openHostFile(file: string): Promise<{ handle: FileHandle; sizeBytes: number; mode: number }> {
  let handle: FileHandle
  try {
    handle = await open(file, constants.O_RDONLY | constants.O_NONBLOCK) // a FIFO must not hang us: it is refused below
  } catch (error) {
    throw hostFileError(error, `read ${file}`)
  }
  const stats = await handle.stat()
  if (stats.isFile()) return { handle, sizeBytes: stats.size, mode: stats.mode & 0o7777 }
  await handle.close()
  throw new BandSoxError(
    'file-error',
    `cannot read ${file}: it is ${stats.isDirectory() ? 'a folder' : 'not a regular file'}`,
  )
}

/**
 * A place for a download. Nothing of it is visible before `commit`, and `discard` leaves nothing.
 *
 * @param file Host path; when it is a folder, the guest file's name is used in it.
 */
export class HostFileSink implements DownloadSink {
  readonly #wanted: string
  readonly #guestName: string
  readonly #isFolder: Promise<boolean>
  #target = ''
  #temporary: string | undefined
  #handle: FileHandle | undefined

  constructor(file: string, guestPath: string) {
    this.#wanted = path.resolve(file)
    this.#guestName = path.posix.basename(guestPath)
    this.#isFolder = isFolder(this.#wanted) // looked up while the guest is being asked
    this.#isFolder.catch(() => undefined) // thrown by `begin`, unless the guest refuses first
  }

  /** Where the file is, once it was begun. */
  get target(): string {
    return this.#target
  }

  async begin(file: { sizeBytes: number; mode: number }): Promise<void> {
    this.#target = (await this.#isFolder) ? path.join(this.#wanted, this.#guestName) : this.#wanted
    const folder = path.dirname(this.#target)
    try {
      if (file.sizeBytes >= WORTH_A_LOOK_BYTES) await this.#requireSpace(folder, file.sizeBytes)
      const temporary = path.join(
        folder,
        `.${path.basename(this.#target).slice(0, 200)}.bandsox-${randomBytes(6).toString('hex')}`,
      )
      // Set-id bits of a guest's file must not become the host's.
      this.#handle = await inFolder(folder, () => open(temporary, 'wx', file.mode & 0o777))
      this.#temporary = temporary
    } catch (error) {
      throw hostFileError(error, `write ${this.#target}`)
    }
  }

  async write(batch: Buffer[]): Promise<void> {
    try {
      const size = batch.reduce((sum, { length }) => sum + length, 0)
      const { bytesWritten } = await this.#open().writev(batch)
      // The system reports an error only when not a single byte was taken: a disk that fills up in the middle cuts short.
      if (bytesWritten !== size)
        throw new BandSoxError(
          'no-space',
          `cannot write ${this.#target}: the host took ${bytesWritten} of ${size} bytes`,
        )
    } catch (error) {
      throw hostFileError(error, `write ${this.#target}`)
    }
  }

  async commit(): Promise<void> {
    const handle = this.#open()
    try {
      await handle.sync()
      await handle.close()
      this.#handle = undefined
      await rename(this.#temporary ?? '', this.#target)
      this.#temporary = undefined
    } catch (error) {
      throw hostFileError(error, `write ${this.#target}`)
    }
  }

  /** Removes what was not committed; harmless after `commit`. */
  async discard(): Promise<void> {
    const [handle, temporary] = [this.#handle, this.#temporary]
    this.#handle = this.#temporary = undefined
    try {
      await handle?.close()
    } finally {
      if (temporary !== undefined) await rm(temporary, { force: true })
    }
  }

  async #requireSpace(folder: string, sizeBytes: number): Promise<void> {
    const { bavail, bsize } = await inFolder(folder, () => statfs(folder))
    if (sizeBytes + RESERVE_BYTES <= bavail * bsize) return
    throw new BandSoxError(
      'no-space',
      `cannot write ${this.#target}: ${sizeBytes} bytes are needed, ${bavail * bsize} are free on the host`,
    )
  }

  #open(): FileHandle {
    if (this.#handle === undefined) throw new BandSoxError('internal', 'a download was written before it was begun')
    return this.#handle
  }
}

/** Makes the folder only when it was missed: it is there nearly always. */
async function inFolder<T>(folder: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!isSystemError(error, 'ENOENT')) throw error
    await makeFolder(folder)
    return await work()
  }
}

async function isFolder(file: string): Promise<boolean> {
  try {
    return (await stat(file)).isDirectory()
  } catch (error) {
    if (isSystemError(error, 'ENOENT') || isSystemError(error, 'ENOTDIR')) return false
    throw hostFileError(error, `write ${file}`)
  }
}

function hostFileError(error: unknown, attempt: string): unknown {
  if (error instanceof BandSoxError) return error
  const code = isSystemError(error, 'ENOENT')
    ? 'file-not-found'
    : isSystemError(error, 'EACCES') || isSystemError(error, 'EPERM')
      ? 'permission-denied'
      : isSystemError(error, 'ENOSPC')
        ? 'no-space'
        : 'file-error'
  return new BandSoxError(code, `cannot ${attempt} on the host: ${messageOf(error)}`, { cause: error })
}
