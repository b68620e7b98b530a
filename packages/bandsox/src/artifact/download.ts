/**
 * Fetches one file whose SHA-256 is known, from a server or this host: bounded, verified, taken up again where it broke off.
 *
 * What is half there lies under the digest that it will have. So whoever comes next, from whatever server, goes on with it: that the
 * bytes belong together is known at the end, by the digest, not by what a server says of its file (an ETag is one server's, and some
 * have none). What turns out wrong after it was taken up again is fetched once more from its beginning.
 */
import { createHash, type Hash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { type FileHandle, open, rename, rm, stat } from 'node:fs/promises'
import type { Readable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import { pause } from '../process/pause.js'

/** Attempts that bring little or nothing, one after the other, before it is given up. */
const MAX_IDLE_ATTEMPTS = 4
/** Less than this is little: a server that sends a byte and breaks off would be asked without end. */
const LEAST_PROGRESS_BYTES = 1024 * 1024
const FIRST_PAUSE_MS = 250
/** Between two reports of progress. */
const REPORTED_BYTES = 1024 * 1024
const PIECE_BYTES = 1024 * 1024
/** See RFC 9110, 14.4. Fifteen digits are a safe integer. */
const CONTENT_RANGE = /^bytes (\d{1,15})-\d{1,15}\/(\d{1,15}|\*)$/

export interface HttpAnswer {
  status: number
  headers: Record<string, string | string[] | undefined>
  body: Readable
}

/**
 * Sends a GET and follows redirects: whoever has a client with proxies and time limits gives it.
 *
 * @throws `registry-unreachable` or `registry-failed` when there is no answer; `signal.reason`.
 */
export type HttpGet = (
  url: URL,
  headers: Record<string, string>,
  signal: AbortSignal | undefined,
) => Promise<HttpAnswer>

export interface Progress {
  bytes: number
  /** Unknown where the server does not say. */
  totalBytes: number | undefined
}

export interface DownloadOptions {
  /** `http:`, `https:` or `file:`. */
  url: URL
  /** Lower-case hex digest that it must have. */
  sha256: string
  maxBytes: number
  /** Where it grows; stays when this process ends early. */
  part: string
  /** Where it is when it is whole and verified. */
  target: string
  get: HttpGet
  onProgress?: ((progress: Progress) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * Fetches the file. One process at a time may work on the same `part`.
 *
 * @throws `file-not-found` when the server, or this host, does not have it; `host-missing` when it cannot be had; `bad-request` when it is
 *   larger than allowed; `checksum-mismatch`, after which nothing of it is left; `signal.reason`.
 */
export async function downloadVerified(options: DownloadOptions): Promise<void> {
  const { part, target, url, sha256 } = options
  const file = await open(part, 'a+', 0o644)
  let found: string
  try {
    const isResumed = (await file.stat()).size > 0
    found = await fetchRest(file, options)
    if (found !== sha256 && isResumed) {
      await file.truncate(0)
      found = await fetchRest(file, options)
    }
    await file.datasync()
  } catch (error) {
    // What is too large is not what was asked for, and would be too large the next time.
    if (error instanceof BandSoxError && error.code === 'bad-request') await rm(part, { force: true })
    throw error
  } finally {
    await file.close()
  }
  if (found !== sha256) {
    await rm(part, { force: true })
    throw new BandSoxError('checksum-mismatch', `${shown(url)} has the SHA-256 ${found} instead of ${sha256}`, {
      hint: 'nothing of it was kept; check the address, and the checksum with whoever publishes it',
    })
  }
  await rename(part, target)
}

/**
 * Reads a small text.
 *
 * @returns undefined when it is not there.
 * @throws `host-missing` when it cannot be had, `bad-request` when it is larger than allowed, `signal.reason`.
 */
export async function readText(
  url: URL,
  { get, maxBytes, signal }: { get: HttpGet; maxBytes: number; signal?: AbortSignal | undefined },
): Promise<string | undefined> {
  const chunks: Buffer[] = []
  let size = 0
  for (let attempt = 1; ; attempt++) {
    try {
      const { stream } = await openAt(url, 0, get, signal)
      try {
        for await (const chunk of stream) {
          size += (chunk as Buffer).length
          if (size > maxBytes) throw tooLarge(url, maxBytes)
          chunks.push(chunk as Buffer)
        }
      } finally {
        stream.destroy()
      }
      return Buffer.concat(chunks).toString('utf8')
    } catch (error) {
      signal?.throwIfAborted()
      if (error instanceof BandSoxError && error.code === 'file-not-found') return undefined
      if (error instanceof BandSoxError && error.code !== 'registry-failed') throw asOurs(url, error)
      if (attempt === MAX_IDLE_ATTEMPTS) throw asOurs(url, error)
      chunks.length = 0
      size = 0
      await pause(FIRST_PAUSE_MS * 2 ** attempt, signal)
    }
  }
}

/** Without what may be a password, for people and records. */
export function shown(url: URL): string {
  if (url.username === '' && url.password === '') return url.href
  const plain = new URL(url)
  plain.username = ''
  plain.password = ''
  return plain.href
}

/** Fetches what the file does not have yet. @returns The digest of all that is in it then. */
async function fetchRest(file: FileHandle, options: DownloadOptions): Promise<string> {
  const { url, sha256, maxBytes, get, onProgress, signal } = options
  let { hash, bytes } = await hashOf(file, maxBytes)
  // A process that was killed between the last byte and the new name.
  if (bytes > 0 && hash.copy().digest('hex') === sha256) return sha256
  for (let idle = 0; ; ) {
    const before = bytes
    try {
      const opened = await openAt(url, bytes, get, signal)
      const { stream, startsAt, totalBytes } = opened
      try {
        if (startsAt !== bytes) {
          await file.truncate(0)
          bytes = 0
          hash = createHash('sha256')
        }
        if (totalBytes !== undefined && totalBytes > maxBytes) throw tooLarge(url, maxBytes)
        let reported = bytes
        onProgress?.({ bytes, totalBytes })
        for await (const chunk of stream) {
          signal?.throwIfAborted()
          const piece = chunk as Buffer
          if (bytes + piece.length > maxBytes) throw tooLarge(url, maxBytes)
          await file.appendFile(piece)
          hash.update(piece)
          bytes += piece.length
          if (bytes - reported < REPORTED_BYTES) continue
          reported = bytes
          onProgress?.({ bytes, totalBytes })
        }
        if (bytes !== reported) onProgress?.({ bytes, totalBytes })
      } finally {
        stream.destroy()
      }
      return hash.digest('hex')
    } catch (error) {
      signal?.throwIfAborted()
      idle = bytes - before >= LEAST_PROGRESS_BYTES ? 0 : idle + 1
      const isFinal = error instanceof BandSoxError && error.code !== 'registry-failed'
      // A full disk, say, is not the server's doing; what comes from this host's own files does not get better.
      if (isFinal || idle >= MAX_IDLE_ATTEMPTS || url.protocol === 'file:' || isOfFile(error)) throw asOurs(url, error)
      await pause(FIRST_PAUSE_MS * 2 ** idle, signal)
    }
  }
}

const FILE_ERRORS = ['ENOSPC', 'EDQUOT', 'EROFS', 'EIO', 'EFBIG']
const isOfFile = (error: unknown): boolean => FILE_ERRORS.some((code) => isSystemError(error, code))

/** In the words of whoever wanted a file: there is no registry here. */
function asOurs(url: URL, error: unknown): unknown {
  if (isSystemError(error, 'ENOSPC') || isSystemError(error, 'EDQUOT')) {
    return new BandSoxError('no-space', `cannot keep ${shown(url)}: ${messageOf(error)}`, {
      cause: error,
      hint: 'free some space, or use another folder: --storage',
    })
  }
  const isOther = error instanceof BandSoxError && !/^registry-/.test(error.code)
  if (isOther || isOfFile(error)) return error
  return new BandSoxError('host-missing', `cannot get ${shown(url)}: ${messageOf(error)}`, { cause: error })
}

interface Opened {
  stream: Readable
  /** The offset asked for, or 0 from a server that only begins at the beginning. */
  startsAt: number
  totalBytes: number | undefined
}

/** @throws `file-not-found`; `host-missing` for a refusal; `registry-failed` for what may be better the next time; as `get`. */
async function openAt(url: URL, offset: number, get: HttpGet, signal: AbortSignal | undefined): Promise<Opened> {
  if (url.protocol === 'file:') return await openLocal(url, offset)
  const headers: Record<string, string> = { 'accept-encoding': 'identity' }
  if (url.username !== '') headers['authorization'] = basicOf(url)
  if (offset > 0) headers['range'] = `bytes=${offset}-`
  const answer = await get(url, headers, signal)
  const { status, body } = answer
  if (status === 200) return { stream: body, startsAt: 0, totalBytes: lengthOf(answer) }
  if (status === 206) {
    const [, start, total] = CONTENT_RANGE.exec(headerOf(answer, 'content-range') ?? '') ?? []
    if (start !== undefined && Number(start) === offset)
      return { stream: body, startsAt: offset, totalBytes: total === '*' ? undefined : Number(total) }
  }
  body.destroy()
  // The part is as long as the file, or longer, and is not it; or the server sent another part than it was asked for.
  if (offset > 0 && (status === 416 || status === 206)) return await openAt(url, 0, get, signal)
  if (status === 404 || status === 410)
    throw new BandSoxError('file-not-found', `${shown(url)} is not there: the server answers ${status}`)
  if (status === 401 || status === 403 || status === 407)
    throw new BandSoxError(
      'host-missing',
      `cannot get ${shown(url)}: the server answers ${status}, it is not permitted`,
    )
  const code = status === 429 || status >= 500 ? 'registry-failed' : 'host-missing'
  throw new BandSoxError(code, `cannot get ${shown(url)}: the server answers ${status}`)
}

async function openLocal(url: URL, offset: number): Promise<Opened> {
  const path = fileURLToPath(url)
  try {
    const found = await stat(path)
    if (!found.isFile()) throw new BandSoxError('bad-request', `${path} is no file`)
    const startsAt = offset <= found.size ? offset : 0
    const stream = createReadStream(path, { start: startsAt, highWaterMark: PIECE_BYTES })
    return { stream, startsAt, totalBytes: found.size }
  } catch (error) {
    if (isSystemError(error, 'ENOENT') || isSystemError(error, 'ENOTDIR'))
      throw new BandSoxError('file-not-found', `there is no ${path}`, { cause: error })
    throw error
  }
}

const headerOf = (answer: HttpAnswer, name: string): string | undefined => [answer.headers[name]].flat()[0]

function lengthOf(answer: HttpAnswer): number | undefined {
  const text = headerOf(answer, 'content-length') ?? ''
  return /^\d{1,15}$/.test(text) ? Number(text) : undefined
}

function basicOf({ username, password }: URL): string {
  const text = `${decodeURIComponent(username)}:${decodeURIComponent(password)}`
  return `Basic ${Buffer.from(text).toString('base64')}`
}

const tooLarge = (url: URL, maxBytes: number): BandSoxError =>
  new BandSoxError('bad-request', `${shown(url)} has more than ${maxBytes} bytes: it is not what was asked for`)

/** Of what an earlier process has fetched; a file that is too long is begun anew. */
async function hashOf(file: FileHandle, maxBytes: number): Promise<{ hash: Hash; bytes: number }> {
  const hash = createHash('sha256')
  if ((await file.stat()).size > maxBytes) await file.truncate(0)
  const buffer = Buffer.allocUnsafe(PIECE_BYTES)
  for (let bytes = 0; ; ) {
    const { bytesRead } = await file.read(buffer, 0, PIECE_BYTES, bytes)
    if (bytesRead === 0) return { hash, bytes }
    hash.update(buffer.subarray(0, bytesRead))
    bytes += bytesRead
  }
}
