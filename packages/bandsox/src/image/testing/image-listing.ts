/** What an image shows, as lines to compare: read back from the tar that its disk is made of. */
import { createHash } from 'node:crypto'
import type { Content, TarEntry } from '../../tar/tar-entry.js'
import { TarReader } from '../../tar/tar-reader.js'
import { type DiskLayer, diskEntries } from '../disk-writer.js'
import { decompress } from '../layer/decompress.js'
import { ImageBudget, indexLayer } from '../layer/layer-index.js'
import { DEFAULT_LIMITS, type ImageLimits } from '../layer/limits.js'

export interface LayerSpec {
  blob: Buffer
  /** Digest of what the blob unpacks to. */
  diffId: string
  /** The blob as it comes; default: in one piece. */
  pieces?: () => AsyncIterable<Buffer>
}

/** Path to what is there, described in one line; the root folder is `/`. */
export type Listing = Record<string, string>

/** What a line says. */
export interface Described {
  kind: string
  mode: number
  uid: number
  gid: number
  mtime: number
  xattrs: ReadonlyMap<string, Buffer> | undefined
  target?: string
  device?: { major: number; minor: number }
  content?: Buffer
}

/** @param layers The lowest first, as in a manifest. */
export async function indexLayers(
  layers: readonly LayerSpec[],
  limits: Partial<ImageLimits> = {},
  warn?: (message: string) => void,
): Promise<DiskLayer[]> {
  const budget = new ImageBudget({ ...DEFAULT_LIMITS, ...limits })
  const found: DiskLayer[] = []
  for (const { blob, diffId, pieces = () => inOnePiece(blob) } of [...layers].reverse()) {
    const tree = await indexLayer(pieces(), { digest: 'sha256:of-the-blob', diffId, budget, warn })
    found.push({ tree: Promise.resolve(tree), open: () => decompress(pieces()) })
  }
  return found
}

/** @param layers The highest first. */
export async function diskTar(layers: readonly DiskLayer[]): Promise<Buffer> {
  const parts: Buffer[] = []
  for await (const part of diskEntries(layers)) parts.push(part)
  return Buffer.concat(parts)
}

/** @throws When the tar is none that sqfstar may have: a path twice, or one that is not under `rootfs`. */
export function listing(tar: Buffer): Listing {
  const entries: TarEntry[] = []
  const reader = new TarReader((entry) => entries.push(entry))
  reader.write(tar)
  reader.end()
  const names = new Map<string, string[]>()
  const described = new Map<string, Described>()
  for (const entry of entries) {
    const path = inImage(entry.path)
    if (described.has(path) || [...names.values()].some((others) => others.includes(path))) {
      throw new Error(`${path} comes twice`)
    }
    if (entry.kind === 'hardlink') {
      const first = inImage(entry.target)
      if (!described.has(first)) throw new Error(`${path} is a link to ${first}, which has not come yet`)
      names.set(first, [...(names.get(first) ?? []), path])
    } else {
      const { mode, uid, gid, mtime, xattrs, target, device, kind } = entry
      const content = kind === 'file' ? contentOf(tar, entry.content) : undefined
      described.set(path, { kind, mode, uid, gid, mtime, xattrs, target, device, ...(content && { content }) })
    }
  }
  return linesOf(described, names)
}

/** @param names Of each file that has several: the others, by the one that is in `described`. */
export function linesOf(described: Map<string, Described>, names: Map<string, string[]>): Listing {
  const lines: [string, string][] = []
  for (const [path, each] of described) {
    const [first = path, ...others] = [path, ...(names.get(path) ?? [])].sort()
    lines.push([first, lineOf(each)], ...others.map((other): [string, string] => [other, `same as ${first}`]))
  }
  return Object.fromEntries(lines.sort(([one], [other]) => (one < other ? -1 : 1)))
}

/** `kind mode uid:gid`, and what the kind has besides. A time of 0 is left out. */
function lineOf({ kind, mode, uid, gid, mtime, xattrs, target, device, content }: Described): string {
  const parts = [kind, mode.toString(8), `${uid}:${gid}`]
  if (kind === 'symlink') parts.push(`-> ${target}`)
  if (kind.endsWith('-device')) parts.push(`${device?.major}:${device?.minor}`)
  if (content !== undefined) parts.push(String(content.length), contentText(content))
  if (mtime !== 0) parts.push(`@${mtime}`)
  for (const [name, value] of [...(xattrs ?? [])].sort()) parts.push(`${name}=${value.toString('hex')}`)
  return parts.join(' ')
}

function contentText(content: Buffer): string {
  if (content.length <= 64) return JSON.stringify(content.toString('latin1'))
  return createHash('sha256').update(content).digest('hex').slice(0, 12)
}

function inImage(path: string): string {
  if (path === 'rootfs') return '/'
  if (!path.startsWith('rootfs/')) throw new Error(`${path} is not in the image's folder`)
  return path.slice('rootfs/'.length)
}

function contentOf(tar: Buffer, { position, storedBytes, sizeBytes, extents }: Content): Buffer {
  const content = Buffer.alloc(sizeBytes)
  let at = position
  for (const { offset, length } of extents ?? [{ offset: 0, length: storedBytes }]) {
    tar.copy(content, offset, at, at + length)
    at += length
  }
  return content
}

async function* inOnePiece(bytes: Buffer): AsyncGenerator<Buffer> {
  if (bytes.length > 0) yield bytes
}
