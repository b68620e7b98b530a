/** Finds the files of a tar that an image may lie in, as its bytes come; contents are passed over. No I/O. */
import { posix } from 'node:path'
import type { Content, TarEntry } from '../../tar/tar-entry.js'
import { TarReader } from '../../tar/tar-reader.js'

/** An image has some dozen files; a tar with more is something else. */
const MAX_FILES = 100_000
/** Bytes of all paths and targets together: 100 000 files of images have some 10 MiB. */
const MAX_NAMES_BYTES = 64 * 1024 * 1024
/** Linux: PATH_MAX. No archive of an image has a longer path. */
const MAX_PATH_BYTES = 4096
/** `docker save` of old links a layer that comes twice. */
const MAX_LINKS = 8
/** In the root of every system, and of no layout and no archive of an engine. */
const SYSTEM_FOLDERS = new Set(['bin', 'dev', 'etc', 'lib', 'proc', 'sbin', 'sys', 'usr', 'var'])

/** Where a file's bytes lie in the tar. */
export type Stored = Pick<Content, 'position' | 'storedBytes'>

export class TarIndex {
  readonly #reader = new TarReader((entry) => this.#add(entry))
  readonly #files = new Map<string, Stored>()
  readonly #links = new Map<string, string>()
  #namesBytes = 0
  #isCrowded = false
  #hasSystemFolder = false

  /** It has more files than an archive of an image; the rest of them is left out. */
  get isCrowded(): boolean {
    return this.#isCrowded
  }

  /** It has a folder that only the root of a system has. */
  get hasSystemFolder(): boolean {
    return this.#hasSystemFolder
  }

  /** @throws `layer-invalid` with the place in the tar. */
  write(piece: Buffer): void {
    this.#reader.write(piece)
  }

  /** @throws `layer-invalid` when the tar ends within an entry. */
  end(): void {
    this.#reader.end()
  }

  /** @returns The path of the file that links lead to; undefined when there is none. */
  resolve(wanted: string): string | undefined {
    let path: string | undefined = wanted
    for (let followed = 0; path !== undefined && followed <= MAX_LINKS; followed++) {
      if (this.#files.has(path)) return path
      path = this.#links.get(path)
    }
    return undefined
  }

  find(wanted: string): Stored | undefined {
    const path = this.resolve(wanted)
    return path === undefined ? undefined : this.#files.get(path)
  }

  #add({ kind, path: written, target, content }: TarEntry): void {
    if (written.length > MAX_PATH_BYTES || target.length > MAX_PATH_BYTES) return
    const path = clean(written)
    if (SYSTEM_FOLDERS.has(path.split('/', 1)[0] ?? '')) this.#hasSystemFolder = true
    // Of two of one name the later holds.
    this.#files.delete(path)
    this.#links.delete(path)
    this.#namesBytes += path.length + target.length
    if (this.#files.size + this.#links.size >= MAX_FILES || this.#namesBytes > MAX_NAMES_BYTES) {
      this.#isCrowded = true
      return
    }
    const { position, storedBytes, extents } = content
    // A sparse file's bytes do not lie there in one piece.
    if (kind === 'file' && extents === undefined) this.#files.set(path, { position, storedBytes })
    else if (kind === 'symlink') this.#links.set(path, posix.join(posix.dirname(path), target))
    else if (kind === 'hardlink') this.#links.set(path, clean(target))
  }
}

const clean = (path: string): string => posix.normalize(path).replace(/^\.?\/+/, '')
