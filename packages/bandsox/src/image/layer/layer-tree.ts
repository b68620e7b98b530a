/**
 * One layer as a tree: what its tar makes when it is unpacked, in the order of its entries, into an empty folder.
 *
 * A layer changes what lies below it. Besides files it has whiteouts, `.wh.NAME`, which take NAME away, and opaque folders,
 * marked by `.wh..wh..opq`, which hide all that lower layers have in them; both wherever they stand in the tar.
 * See OCI image-spec, layer.md.
 *
 * Nothing here touches a file system, so no path and no link of a layer can lead anywhere but into this tree.
 */
import { BandSoxError } from '@bandsox/sdk'
import { MAX_NAME_BYTES, MAX_PATH_BYTES } from './limits.js'
import { type Attributes, type ByteString, type Content, type FileKind, readable, type TarEntry } from './tar-entry.js'

/** A file that is no folder; hard links are several names of one. */
export interface Inode extends Attributes {
  kind: FileKind
  target: ByteString
  device: { major: number; minor: number }
  content: Content
  /** Names in the merged image, filled when layers are merged. */
  paths: ByteString[]
}

export interface Directory {
  kind: 'directory'
  /** undefined: it is only the parent of something, and says nothing about itself. */
  attributes: Attributes | undefined
  /** Hides what lower layers have in it. */
  opaque: boolean
  children: Map<ByteString, LayerNode>
}

export type LayerNode =
  | Directory
  | { kind: 'inode'; inode: Inode }
  /** A hard link to a file of a lower layer. */
  | { kind: 'lower-link'; target: ByteString }
  | { kind: 'whiteout' }

const WHITEOUT = '.wh.'
const OPAQUE = '.wh..wh..opq'
/** Of aufs, about itself: `.wh..wh.plnk` and the like. */
const AUFS = '.wh..wh.'
/** As in Linux. */
const MAX_LINKS = 40
/** Parts of a path and of all links on its way: more than the longest path has, so that 40 long links cost no more than it. */
const MAX_STEPS = MAX_PATH_BYTES
/** Linux: 12 and 20 bits. */
const MAX_MAJOR = 0xfff
const MAX_MINOR = 0xfffff
/** Long names, attributes and maps count as further nodes, since an image of some MB could else take all memory with them. */
const NODE_BYTES = 512
/** Of V8, for an object of two numbers. */
const EXTENT_BYTES = 48

/** What every system has, and what gives nobody anything: [major, minor]. See Linux, admin-guide/devices.txt. */
const harmlessDevices = new Set(['1,3', '1,5', '1,7', '1,8', '1,9', '5,0', '5,1', '5,2'])

/** For folders that no layer describes: what engines make them with. */
export const defaultAttributes: Attributes = { mode: 0o755, uid: 0, gid: 0, mtime: 0, xattrs: undefined }

/** A folder, and how long the path to it is with a slash at its end. */
interface Place {
  directory: Directory
  pathBytes: number
}

export interface LayerTreeOptions {
  allowDevices: boolean
  warn?: ((message: string) => void) | undefined
}

export const emptyDirectory = (): Directory => ({
  kind: 'directory',
  attributes: undefined,
  opaque: false,
  children: new Map(),
})

export class LayerTree {
  readonly root = emptyDirectory()
  /** All that were ever there, in the order of the tar; also those that a later entry replaced. */
  readonly inodes: Inode[] = []
  /** Entries, folders that none of them names, and one more for every 512 bytes of any: what the memory of this tree grows with. */
  nodes = 0
  readonly #options: LayerTreeOptions
  /** Links whose target had not come yet. */
  #openLinks: { parent: Directory; name: ByteString; target: ByteString }[] = []
  /** Names that are hidden below this layer, if this layer has them or not. */
  #whiteouts: { parent: Directory; name: ByteString }[] = []

  constructor(options: LayerTreeOptions) {
    this.#options = options
  }

  /** @throws `layer-invalid`, `layer-hostile`, naming the path. */
  add(entry: TarEntry): void {
    this.nodes++
    const parts = splitPath(entry.path)
    const name = parts.pop()
    if (name === undefined) {
      if (entry.kind !== 'directory') {
        throw new BandSoxError('layer-invalid', `the root folder is a ${entry.kind}: ${readable(entry.path)}`)
      }
      this.root.attributes = attributesOf(entry, this.#options.warn)
      return
    }
    const place = this.#makeDirectories(parts, entry.path)
    if (place === undefined) {
      // A folder that became a file may have whiteouts for what was in it, as umoci writes them: the file hides that anyway.
      if (name.startsWith(WHITEOUT)) return
      throw new BandSoxError('layer-invalid', `${readable(entry.path)} lies in a file`)
    }
    const { directory: parent, pathBytes } = place
    if (pathBytes + name.length >= MAX_PATH_BYTES) throw tooDeep(entry.path)
    this.nodes += Math.floor((pathBytes + heldBytes(entry)) / NODE_BYTES)
    if (name.startsWith(WHITEOUT)) this.#hide(parent, name, entry.path)
    else this.#place(parent, name, entry)
  }

  /** To be called after the last entry: a link may stand before its target, and a whiteout before a file of its name. */
  finish(): void {
    for (const { parent, name, target } of this.#openLinks) {
      if (parent.children.get(name)?.kind !== 'lower-link') continue // replaced since
      const found = this.#find(target)
      if (found?.kind === 'inode') parent.children.set(name, found)
      else if (found?.kind === 'directory' && found.attributes !== undefined) throw linkToFolder(name, target)
    }
    for (const { parent, name } of this.#whiteouts) {
      const present = parent.children.get(name)
      if (present === undefined) parent.children.set(name, { kind: 'whiteout' })
      else if (present.kind === 'directory') present.opaque = true
    }
    this.#openLinks = []
    this.#whiteouts = []
  }

  /** A whiteout hides what is below this layer, never what this layer has itself, before or after. */
  #hide(parent: Directory, name: ByteString, path: ByteString): void {
    if (name === OPAQUE) {
      parent.opaque = true
      parent.attributes ??= defaultAttributes // it is hidden what is in the folder, not the folder
      return
    }
    if (name.startsWith(AUFS)) return
    const hidden = name.slice(WHITEOUT.length)
    if (hidden === '.' || hidden === '..') throw outside(path)
    if (hidden === '') throw new BandSoxError('layer-invalid', `the whiteout ${readable(path)} names nothing`)
    this.#whiteouts.push({ parent, name: hidden })
  }

  #place(parent: Directory, name: ByteString, entry: TarEntry): void {
    const present = parent.children.get(name)
    switch (entry.kind) {
      case 'directory':
        if (present?.kind === 'directory') {
          present.attributes = attributesOf(entry, this.#options.warn)
          return
        }
        parent.children.set(name, { ...emptyDirectory(), attributes: attributesOf(entry, this.#options.warn) })
        return
      case 'hardlink':
        parent.children.set(name, this.#linked(parent, name, entry))
        return
      default: {
        const inode = this.#newInode(entry, entry.kind)
        this.inodes.push(inode)
        parent.children.set(name, { kind: 'inode', inode })
      }
    }
  }

  #linked(parent: Directory, name: ByteString, { path, target }: TarEntry): LayerNode {
    const parts = splitPath(target)
    const found = this.#find(target)
    if (found?.kind === 'directory' && found.attributes !== undefined) throw linkToFolder(path, target)
    if (parts.length === 0) throw new BandSoxError('layer-invalid', `the hard link ${readable(path)} has no target`)
    if (found?.kind === 'inode' || found?.kind === 'lower-link') {
      if (found === parent.children.get(name)) {
        throw new BandSoxError('layer-invalid', `the hard link ${readable(path)} leads to itself`)
      }
      if (found.kind === 'lower-link') this.#openLinks.push({ parent, name, target: found.target })
      return found
    }
    this.#openLinks.push({ parent, name, target })
    return { kind: 'lower-link', target: parts.join('/') }
  }

  #newInode(entry: TarEntry, kind: FileKind): Inode {
    const { target, device, content, path } = entry
    if (kind === 'symlink') {
      if (target === '') throw new BandSoxError('layer-invalid', `the symbolic link ${readable(path)} has no target`)
      if (target.length >= MAX_PATH_BYTES) {
        throw new BandSoxError(
          'layer-invalid',
          `the target of ${readable(path.slice(0, 80))} has ${target.length} bytes`,
        )
      }
    }
    const number = `${device.major}:${device.minor}`
    if (device.major > MAX_MAJOR || device.minor > MAX_MINOR) {
      throw new BandSoxError('layer-invalid', `${readable(path)} is a device with a number that none has (${number})`)
    }
    if ((kind === 'character-device' || kind === 'block-device') && !this.#mayHave(kind, device)) {
      throw new BandSoxError('layer-hostile', `${readable(path)} is a ${kind} (${number})`, {
        hint: 'allow devices for images in the configuration, if you trust this one: "allowDevices": true',
      })
    }
    return { ...attributesOf(entry, this.#options.warn), kind, target, device, content, paths: [] }
  }

  #mayHave(kind: FileKind, { major, minor }: { major: number; minor: number }): boolean {
    if (kind === 'character-device' && harmlessDevices.has(`${major},${minor}`)) return true
    // 0:0 means "whiteout" to the overlay in the guest: in no image it is a device.
    return this.#options.allowDevices && !(major === 0 && minor === 0)
  }

  /**
   * Walks to a folder, makes what is missing, and follows this layer's own symbolic links, as a container engine would.
   *
   * @returns undefined when a file is in the way.
   */
  #makeDirectories(parts: ByteString[], path: ByteString): Place | undefined {
    const trail: Place[] = [{ directory: this.root, pathBytes: 0 }]
    const todo = [...parts].reverse()
    for (let links = 0, steps = 0; ; steps++) {
      const part = todo.pop()
      const here = trail.at(-1) ?? { directory: this.root, pathBytes: 0 }
      if (part === undefined) return here
      if (steps > MAX_STEPS) throw tooDeep(path)
      if (part === '' || part === '.') continue
      if (part === '..') {
        if (trail.length === 1) throw outside(path)
        trail.pop()
        continue
      }
      const pathBytes = here.pathBytes + part.length + 1
      const next = here.directory.children.get(part)
      if (next === undefined) {
        checkName(part) // of a link's target
        if (pathBytes >= MAX_PATH_BYTES) throw tooDeep(path)
        const made = emptyDirectory()
        here.directory.children.set(part, made)
        this.nodes++
        trail.push({ directory: made, pathBytes })
      } else if (next.kind === 'directory') {
        trail.push({ directory: next, pathBytes })
      } else if (next.kind === 'inode' && next.inode.kind === 'symlink') {
        if (++links > MAX_LINKS)
          throw new BandSoxError('layer-invalid', `${readable(path)} lies behind a circle of links`)
        const { target } = next.inode
        if (target.startsWith('/')) trail.length = 1
        todo.push(...target.split('/').reverse())
      } else {
        return undefined
      }
    }
  }

  /** What stands at a path; symbolic links on the way are followed, the last part is not. */
  #find(path: ByteString): LayerNode | undefined {
    const trail: Directory[] = [this.root]
    const todo = splitPath(path).reverse()
    for (let links = 0, steps = 0; ; steps++) {
      const part = todo.pop()
      const here = trail.at(-1) ?? this.root
      if (part === undefined) return here
      if (steps > MAX_STEPS) return undefined
      if (part === '' || part === '.') continue
      if (part === '..') {
        if (trail.length === 1) throw outside(path)
        trail.pop()
        continue
      }
      const next = here.children.get(part)
      if (todo.length === 0 || next === undefined) return next
      if (next.kind === 'directory') {
        trail.push(next)
      } else if (next.kind === 'inode' && next.inode.kind === 'symlink') {
        if (++links > MAX_LINKS) return undefined
        if (next.inode.target.startsWith('/')) trail.length = 1
        todo.push(...next.inode.target.split('/').reverse())
      } else {
        return undefined
      }
    }
  }
}

/** What an entry keeps in memory besides its place in the tree. */
function heldBytes({ path, target, xattrs, content }: TarEntry): number {
  let bytes = path.length + target.length + EXTENT_BYTES * (content.extents?.length ?? 0)
  for (const [name, value] of xattrs ?? []) bytes += name.length + value.length
  return bytes
}

/**
 * @returns The parts of a path below the root, without `.` and `..`; none for the root itself.
 * @throws `layer-hostile` when it leads above the root, `layer-invalid` when a system could not hold it.
 */
function splitPath(path: ByteString): ByteString[] {
  if (path.length >= MAX_PATH_BYTES) {
    throw new BandSoxError('layer-invalid', `a path has ${path.length} bytes: ${readable(path.slice(0, 80))}…`)
  }
  if (path.includes('\0')) throw new BandSoxError('layer-invalid', `a path holds a NUL: ${readable(path)}`)
  const parts: ByteString[] = []
  for (const part of path.split('/')) {
    if (part === '' || part === '.') continue
    if (part === '..') {
      if (parts.pop() === undefined) throw outside(path)
      continue
    }
    checkName(part)
    parts.push(part)
  }
  return parts
}

function checkName(name: ByteString): void {
  if (name.length <= MAX_NAME_BYTES) return
  throw new BandSoxError('layer-invalid', `a name has ${name.length} bytes: ${readable(name.slice(0, 80))}…`)
}

/**
 * What a squashfs can hold of them, and what the overlay in the guest must not find: `trusted.overlay.*` would tell it of
 * folders that were moved or hidden.
 */
function attributesOf(entry: TarEntry, warn: LayerTreeOptions['warn']): Attributes {
  const { mode, uid, gid, mtime, path } = entry
  if (entry.xattrs === undefined) return { mode, uid, gid, mtime, xattrs: undefined }
  const kept = new Map<ByteString, Buffer>()
  for (const [name, value] of entry.xattrs) {
    if (/^(user|trusted|security)\../.test(name) && !/^(trusted|user)\.overlay\./.test(name)) kept.set(name, value)
    else warn?.(`${readable(path)} loses its extended attribute ${readable(name)}: the disk cannot hold it`)
  }
  return { mode, uid, gid, mtime, xattrs: kept.size === 0 ? undefined : kept }
}

const outside = (path: ByteString) =>
  new BandSoxError('layer-hostile', `${readable(path.slice(0, 200))} leads out of the image`)

const tooDeep = (path: ByteString) => new BandSoxError('layer-invalid', `${readable(path.slice(0, 200))} lies too deep`)

const linkToFolder = (path: ByteString, target: ByteString) =>
  new BandSoxError('layer-invalid', `the hard link ${readable(path)} leads to a folder, ${readable(target)}`)
