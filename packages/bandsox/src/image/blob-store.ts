/**
 * Blobs by digest: layers, manifests and configurations as they were published. One that has its name is whole and verified;
 * one that is on its way lies beside it, grows, and is taken up again where a killed process left it.
 */
import { createHash, type Hash } from 'node:crypto'
import { type FileHandle, open, readdir, readFile, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { publishFile } from '../artifact/publish.js'
import { type LockHolder, waitForLockFile } from '../process/lock-file.js'
import { makeFolders } from '../process/make-folder.js'
import { pause } from '../process/pause.js'
import { hexOf } from './digest.js'
import { gather } from './gather.js'
import { type Descriptor, type ImageSource, MAX_DOCUMENT_BYTES } from './source/source.js'

const PIECE_BYTES = 1024 * 1024
/** Attempts that bring little or nothing, one after the other, before a download is given up. */
const MAX_IDLE_ATTEMPTS = 4
/** Less than this is little: a server that sends a byte and breaks off would be asked without end. */
const LEAST_PROGRESS_BYTES = 1024 * 1024
const FIRST_PAUSE_MS = 250

export interface FetchOptions {
  /** Called for every piece: `bytes` of the blob are there. */
  onProgress?: ((bytes: number) => void) | undefined
  onWait?: ((holder: LockHolder) => void) | undefined
  signal?: AbortSignal | undefined
}

export class BlobStore {
  readonly #blobs: string
  readonly #partial: string
  readonly #locks: string

  constructor(root: string) {
    this.#blobs = join(root, 'blobs')
    this.#partial = join(root, 'partial')
    this.#locks = join(root, 'locks')
  }

  async open(): Promise<void> {
    await makeFolders([this.#blobs, this.#partial, this.#locks])
  }

  pathOf(digest: string): string {
    return join(this.#blobs, hexOf(digest))
  }

  /** Bytes of a blob that is there; undefined when it is not. */
  async sizeOf(digest: string): Promise<number | undefined> {
    return await fileSize(this.pathOf(digest))
  }

  /** A small blob. @throws `artifact-damaged` when it is not there. */
  async readDocument(digest: string): Promise<Buffer> {
    const path = this.pathOf(digest)
    const size = await fileSize(path)
    if (size === undefined || size > MAX_DOCUMENT_BYTES) {
      throw new BandSoxError('artifact-damaged', `${path} is missing, or no document`, {
        hint: 'fetch the image again: bandsox image pull',
      })
    }
    return await readFile(path)
  }

  /** Keeps bytes whose digest the caller has computed. */
  async writeDocument(digest: string, bytes: Buffer): Promise<void> {
    if ((await this.sizeOf(digest)) !== undefined) return
    await publishFile(this.pathOf(digest), async (unfinished) => {
      const file = await open(unfinished, 'wx', 0o644)
      try {
        await file.writeFile(bytes)
        await file.sync()
      } finally {
        await file.close()
      }
    })
  }

  /** A blob's bytes. @throws `artifact-damaged` when it is not there. */
  async *read(digest: string): AsyncGenerator<Buffer> {
    const file = await openIfThere(this.pathOf(digest))
    if (file === undefined) throw new BandSoxError('artifact-damaged', `${this.pathOf(digest)} is missing`)
    try {
      for (let position = 0; ; ) {
        const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(PIECE_BYTES), 0, PIECE_BYTES, position)
        if (bytesRead === 0) return
        position += bytesRead
        yield buffer.subarray(0, bytesRead)
      }
    } finally {
      await file.close()
    }
  }

  /**
   * Begins to fetch a blob, unless it is there. One process at a time works on it; others wait and find it done.
   *
   * @returns The blob on its way: to be read at once, by one reader, and done when it is whole and verified.
   */
  fetch(descriptor: Descriptor, source: ImageSource, options: FetchOptions = {}): IncomingBlob {
    const blob = new IncomingBlob([join(this.#partial, hexOf(descriptor.digest)), this.pathOf(descriptor.digest)])
    blob.start(this.#fetch(descriptor, source, blob, options))
    return blob
  }

  async #fetch(descriptor: Descriptor, source: ImageSource, blob: IncomingBlob, options: FetchOptions): Promise<void> {
    const { onProgress, onWait, signal } = options
    const target = this.pathOf(descriptor.digest)
    const report = (bytes: number) => {
      blob.advance(bytes)
      onProgress?.(bytes)
    }
    const lock = join(this.#locks, `${hexOf(descriptor.digest)}.lock`)
    const unlock = await waitForLockFile(lock, 'fetch a layer', { onWait, signal })
    try {
      const present = await fileSize(target)
      if (present !== undefined) {
        checkSize(descriptor, present)
        report(present)
        return
      }
      const path = join(this.#partial, hexOf(descriptor.digest))
      const file = await open(path, 'a+', 0o644)
      try {
        for (let isResumed = (await file.stat()).size > 0; ; isResumed = false) {
          // What a killed process left, or a mirror sends, may be wrong. Such bytes are read by nobody before all are verified,
          // so that they can be fetched once more without anybody's having seen others.
          const isDoubtful = isResumed || source.reject !== undefined
          try {
            const onBytes = isDoubtful ? onProgress : report
            await download(file, descriptor, source, { onBytes, onRestart: () => blob.restart(), signal })
            break
          } catch (error) {
            // Of what was resumed nobody knows whose bytes were wrong.
            if (!isMismatch(error) || !(isResumed || source.reject?.(descriptor) === true)) throw error
            await file.truncate(0)
          }
        }
        await file.datasync()
      } catch (error) {
        if (isMismatch(error)) await rm(path, { force: true })
        throw error
      } finally {
        await file.close()
      }
      await rename(path, target)
      blob.advance(descriptor.size)
    } finally {
      await unlock()
    }
  }

  /** Removes a blob. @returns Bytes that were freed. */
  async remove(digest: string): Promise<number> {
    return await removeFile(this.pathOf(digest))
  }

  /** Removes what is unfinished, with the locks of those who were at it. Only while nothing is being fetched. */
  async removeUnfinished(): Promise<number> {
    let freed = 0
    for (const name of await readdir(this.#partial)) freed += await removeFile(join(this.#partial, name))
    // The other files there are of activity.ts, and of somebody who may just be waiting for us.
    for (const name of await readdir(this.#locks)) {
      if (/^(?:disk-)?[0-9a-f]{64}\.lock/.test(name)) await removeFile(join(this.#locks, name))
    }
    return freed
  }

  async digests(): Promise<string[]> {
    return (await readdir(this.#blobs)).filter((name) => /^[0-9a-f]{64}$/.test(name)).map((hex) => `sha256:${hex}`)
  }
}

/** A blob that is there in part, and grows. */
export class IncomingBlob {
  /** Where it is while it grows, and afterwards. */
  readonly #paths: readonly [string, string]
  #bytes = 0
  #restarts = 0
  #done: Promise<void> = Promise.resolve()
  #isDone = false
  #wake: () => void = () => undefined
  #more: Promise<void> = Promise.resolve()

  constructor(paths: readonly [string, string]) {
    this.#paths = paths
    this.#arm()
  }

  start(work: Promise<void>): void {
    this.#done = work.finally(() => {
      this.#isDone = true
      this.#wake()
    })
    this.#done.catch(() => undefined) // whoever awaits `done` or reads hears of it
  }

  /** Resolves when it is whole and verified. */
  get done(): Promise<void> {
    return this.#done
  }

  advance(bytes: number): void {
    this.#bytes = bytes
    this.#wake()
  }

  /** It is about to be emptied, and comes once more from its beginning. */
  restart(): void {
    this.#restarts++
    this.#bytes = 0
  }

  #arm(): void {
    this.#more = new Promise((resolve) => {
      this.#wake = resolve
    })
  }

  /** Its bytes as they come; the end is only seen when all of it is verified. @throws What ended the fetch. */
  async *read(): AsyncGenerator<Buffer> {
    let file: FileHandle | undefined
    try {
      for (let position = 0; ; ) {
        if (position >= this.#bytes) {
          if (this.#isDone) break
          this.#arm()
          if (position >= this.#bytes && !this.#isDone) await this.#more
          continue
        }
        file ??= await this.#open()
        const wanted = Math.min(PIECE_BYTES, this.#bytes - position)
        const restarts = this.#restarts
        const { bytesRead, buffer } = await file.read(Buffer.allocUnsafe(wanted), 0, wanted, position)
        if (bytesRead === 0 && restarts !== this.#restarts) continue
        if (bytesRead === 0) throw new BandSoxError('artifact-damaged', `${this.#paths[1]} was cut short meanwhile`)
        position += bytesRead
        yield buffer.subarray(0, bytesRead)
      }
      await this.#done
    } finally {
      await file?.close()
    }
  }

  /** It may be renamed between two looks, once. */
  async #open(): Promise<FileHandle> {
    const [partial, whole] = this.#paths
    const file = (await openIfThere(partial)) ?? (await openIfThere(whole))
    if (file === undefined) throw new BandSoxError('artifact-damaged', `${whole} was removed meanwhile`)
    return file
  }
}

interface DownloadOptions {
  onBytes: ((bytes: number) => void) | undefined
  /** Called before the file is emptied, since the source begins at the beginning. */
  onRestart: () => void
  signal: AbortSignal | undefined
}

/** Fetches what the file does not have yet. @throws `digest-mismatch`, what the source throws, or `signal.reason`. */
async function download(
  file: FileHandle,
  descriptor: Descriptor,
  source: ImageSource,
  { onBytes, onRestart, signal }: DownloadOptions,
): Promise<void> {
  let { hash, bytes } = await hashOf(file, descriptor.size)
  onBytes?.(bytes)
  for (let idle = 0; bytes < descriptor.size; ) {
    const before = bytes
    try {
      const { stream, startsAt } = await source.openBlob(descriptor, bytes, signal)
      const pieces = gather(stream, PIECE_BYTES)
      try {
        if (startsAt !== bytes) {
          onRestart()
          await file.truncate(0)
          bytes = 0
          hash = createHash('sha256')
        }
        for await (const piece of pieces) {
          signal?.throwIfAborted()
          if (bytes + piece.length > descriptor.size) {
            throw new BandSoxError(
              'digest-mismatch',
              `${descriptor.digest} has over ${descriptor.size} bytes, as announced`,
            )
          }
          await file.appendFile(piece)
          hash.update(piece)
          bytes += piece.length
          onBytes?.(bytes)
        }
      } finally {
        stream.destroy()
      }
      if (bytes < descriptor.size) {
        // A source whose connection broke says so itself.
        throw new BandSoxError(
          'digest-mismatch',
          `${descriptor.digest} has only ${bytes} of the ${descriptor.size} bytes that were announced`,
        )
      }
    } catch (error) {
      signal?.throwIfAborted()
      idle = bytes - before >= LEAST_PROGRESS_BYTES ? 0 : idle + 1
      if (!isPassing(error) || idle >= MAX_IDLE_ATTEMPTS) throw error
      await pause(FIRST_PAUSE_MS * 2 ** idle, signal)
    }
  }
  const found = `sha256:${hash.digest('hex')}`
  if (found === descriptor.digest) return
  throw new BandSoxError('digest-mismatch', `what came as ${descriptor.digest} has the digest ${found}`)
}

const isMismatch = (error: unknown): boolean => error instanceof BandSoxError && error.code === 'digest-mismatch'

/** A broken connection is taken up again; a refusal is not. */
const isPassing = (error: unknown): boolean =>
  error instanceof BandSoxError && (error.code === 'registry-failed' || error.code === 'registry-unreachable')

/** Of what an earlier process has fetched; a file that is too long is begun anew. */
async function hashOf(file: FileHandle, sizeLimit: number): Promise<{ hash: Hash; bytes: number }> {
  const hash = createHash('sha256')
  const { size } = await file.stat()
  if (size > sizeLimit) await file.truncate(0)
  let bytes = 0
  const buffer = Buffer.allocUnsafe(PIECE_BYTES)
  while (size <= sizeLimit) {
    const { bytesRead } = await file.read(buffer, 0, PIECE_BYTES, bytes)
    if (bytesRead === 0) break
    hash.update(buffer.subarray(0, bytesRead))
    bytes += bytesRead
  }
  return { hash, bytes }
}

function checkSize(descriptor: Descriptor, found: number): void {
  if (found === descriptor.size) return
  throw new BandSoxError(
    'digest-mismatch',
    `${descriptor.digest} has ${found} bytes, and ${descriptor.size} were announced`,
  )
}

async function fileSize(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).size
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}

async function openIfThere(path: string): Promise<FileHandle | undefined> {
  try {
    return await open(path)
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}

/** @returns Bytes that were freed. */
async function removeFile(path: string): Promise<number> {
  const size = await fileSize(path)
  await rm(path, { force: true })
  return size ?? 0
}
