/** The folder of what `init` has under way, or keeps: by digest, one process at a time for each. */
import { readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { downloadVerified, type HttpGet, type Progress, readText, shown } from '../../artifact/download.js'
import { DEFAULT_HTTP_LIMITS, openHttpClient } from '../../image/source/registry/http.js'
import type { ProxySettings } from '../../image/source/registry/proxy.js'
import { type LockHolder, removeDeadClaims, waitForLockFile } from '../../process/lock-file.js'
import { makeFolder } from '../../process/make-folder.js'
import { checksumUrls, parseChecksum } from './firecracker-release.js'

const MAX_CHECKSUM_BYTES = 64 * 1024
const STALE_MS = 7 * 24 * 60 * 60 * 1000

/** How things are got: what all of one `init` have in common. */
export interface Fetching {
  storage: string
  get: HttpGet
  onProgress?: ((url: string, progress: Progress) => void) | undefined
  onWait?: ((holder: LockHolder) => void) | undefined
  signal?: AbortSignal | undefined
}

export const downloadsFolder = (storage: string): string => join(storage, 'downloads')

/** The client that images are fetched with: the same proxies, time limits and rules for redirects. */
export function httpGet(proxy: ProxySettings): { get: HttpGet; close: () => Promise<void> } {
  const clients = new Map<string, ReturnType<typeof openHttpClient>>()
  const clientFor = (host: string) => {
    const present = clients.get(host)
    if (present !== undefined) return present
    const rules = { verifyTls: true, ca: undefined, allowDowngrade: false, allowLoopback: true }
    const client = openHttpClient({ host, ...rules, proxy, limits: DEFAULT_HTTP_LIMITS, debug: () => undefined })
    clients.set(host, client)
    return client
  }
  const never = new AbortController().signal
  return {
    async get(url, headers, signal = never) {
      return await (await clientFor(url.host)).sendFollowing({ method: 'GET', url, headers, signal })
    },
    async close() {
      await Promise.all([...clients.values()].map(async (client) => await (await client).close()))
    },
  }
}

/**
 * The checksum that lies beside a file.
 *
 * @returns undefined when none lies there.
 * @throws `bad-request` for a file of checksums that has none for this one; the codes of readText.
 */
export async function publishedChecksum(file: URL, { get, signal }: Fetching): Promise<string | undefined> {
  for (const url of checksumUrls(file)) {
    const text = await readText(url, { get, maxBytes: MAX_CHECKSUM_BYTES, signal })
    if (text === undefined) continue
    const name = decodeURIComponent(file.pathname.split('/').at(-1) ?? '')
    const sha256 = parseChecksum(text, name)
    if (sha256 === undefined) throw new BandSoxError('bad-request', `${shown(url)} has no SHA-256 of ${name}`)
    return sha256
  }
  return undefined
}

/**
 * Gets a file with this digest, unless it is there, and keeps everybody else from it meanwhile.
 *
 * @param findDone Asked first, when nobody else is at it any more: they may have done all of it.
 * @param use Gets its path.
 * @throws the codes of downloadVerified and of `use`.
 */
export async function withDownload<T>(
  { url, sha256, name, maxBytes, isFresh }: DownloadRequest,
  { storage, get, onProgress, onWait, signal }: Fetching,
  findDone: () => Promise<T | undefined>,
  use: (path: string) => Promise<T>,
): Promise<T> {
  const folder = downloadsFolder(storage)
  await makeFolder(folder)
  const lock = join(folder, `${sha256}.lock`)
  const unlock = await waitForLockFile(lock, `fetch ${name}`, { onWait, signal })
  try {
    await removeDeadClaims(lock)
    const done = await findDone()
    if (done !== undefined) return done
    const target = join(folder, name)
    if (isFresh || !(await isThere(target))) {
      const report = (progress: Progress) => onProgress?.(shown(url), progress)
      const part = join(folder, `${sha256}.part`)
      await downloadVerified({ url, sha256, maxBytes, part, target, get, onProgress: report, signal })
    }
    return await use(target)
  } finally {
    await unlock()
  }
}

export interface DownloadRequest {
  url: URL
  sha256: string
  /** That it gets in the folder, with its digest in it: one that is there is that one. */
  name: string
  maxBytes: number
  /** One that is there is replaced. */
  isFresh: boolean
}

/** Removes half downloads that nobody went on with for a week: of a release that was replaced meanwhile, say. */
export async function removeStaleParts(storage: string): Promise<void> {
  const folder = downloadsFolder(storage)
  await makeFolder(folder)
  for (const name of await readdir(folder)) {
    if (!/^[0-9a-f]{64}\.part$/.test(name)) continue
    const path = join(folder, name)
    if (Date.now() - ((await changedAt(path)) ?? Date.now()) > STALE_MS) await rm(path, { force: true })
  }
}

async function changedAt(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).mtimeMs
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined // it is whole by now
    throw error
  }
}

async function isThere(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isFile()
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return false
    throw error
  }
}
