/**
 * One layer as a tree: what its tar makes when it is unpacked, in the order of its entries, into an empty folder.
 *
 * A layer changes what lies below it. Besides files it has whiteouts, `.wh.NAME`, which take NAME away, and opaque folders,
 * marked by `.wh..wh..opq`, which hide all that lower layers have in them; both wherever they stand in the tar.
 * See OCI image-spec, layer.md.
 *
 * Nothing here touches a file system, so no path and no link of a layer can lead anywhere but into this tree.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { BandSoxError } from '@bandsox/sdk'
import {
  type Attributes,
  type ByteString,
  type Content,
  type FileKind,
  readable,
  type TarEntry,
} from '../../tar/tar-entry.js'
import { MAX_NAME_BYTES, MAX_PATH_BYTES } from './limits.js'

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
  /**
   * Only whiteouts are in it, and no layer described it: it is no folder of the image. Kept rather than looked for, as a layer
   * may ask a million times about a folder of a million whiteouts. Once false it stays so, and is so for all its parents.
   */
  vacant: boolean
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
/** That count as one more node: no path that is in use has so many, and two million such steps take a second. */
const STEPS_PER_NODE = 32
/** Open links, or whiteouts, before others on the event loop have their turn: 1 ms as they mostly are, 0.2 s for the longest. */
const DONE_AT_ONCE = 1_000
/** Linux: 12 and 20 bits. */
const MAX_MAJOR = 0xfff
const MAX_MINOR = 0xfffff
/** Long names, attributes and maps count as further nodes, since an image of some MB could else take all memory with them. */
const NODE_BYTES = 512
/** Of V8, for an object of two numbers. */
const EXTENT_BYTES = 48
/** Of V8, for the place of an attribute in its map, and the buffer of its value. */
const ATTRIBUTE_BYTES = 128
/** Of a path or name in a message, and names of one file. */
const SHOWN_CHARACTERS = 200
const SHOWN_ATTRIBUTES = 3

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
  /**
   * Told of nodes as they come: entries, folders that none of them names, one more for every 512 bytes of any, and for every 32
   * steps to any. The memory and the time of this tree grow with them. What it throws ends the reading.
   */
  takeNodes: (count: number) => void
  warn?: ((message: string) => void) | undefined
}

export const emptyDirectory = (): Directory => ({
  kind: 'directory',
  attributes: undefined,
  opaque: false,
  vacant: true,
  children: new Map(),
})

/** @returns Whether the image has nothing there. */
export const isVacant = (node: LayerNode): boolean =>
  node.kind === 'whiteout' || (node.kind === 'directory' && node.vacant)

export class LayerTree {
  readonly root = emptyDirectory()
  /** All that were ever there, in the order of the tar; also those that a later entry replaced. */
  readonly inodes: Inode[] = []
  readonly #options: LayerTreeOptions
  /** Links whose target had not come yet. */
  #openLinks: { parent: Directory; name: ByteString; target: ByteString }[] = []
  /** Names that are hidden below this layer, if this layer has them or not. */
  #whiteouts: { parent: Directory; name: ByteString }[] = []

  constructor(options: LayerTreeOptions) {
    this.#options = options
  }

  /** @throws `layer-invalid`, `layer-hostile`, naming the path; what `takeNodes` throws. */
  add(entry: TarEntry): void {
    this.#options.takeNodes(1)
    const parts = splitPath(entry.path)
    const name = parts.pop()
    if (name === undefined) {
      if (entry.kind !== 'directory') {
        throw new BandSoxError('layer-invalid', `the root folder is a ${entry.kind}: ${readable(entry.path)}`)
      }
      this.root.attributes = attributesOf(entry, this.#options.warn)
      return
    }
    const trail = this.#makeDirectories(parts, entry.path)
    const place = trail?.at(-1)
    if (trail === undefined || place === undefined) {
      // A folder that became a file may have whiteouts for what was in it, as umoci writes them: the file hides that anyway.
      if (name.startsWith(WHITEOUT)) return
      throw new BandSoxError('layer-invalid', `${readable(entry.path)} lies in a file`)
    }
    const { directory: parent, pathBytes } = place
    if (pathBytes + name.length >= MAX_PATH_BYTES) throw tooDeep(entry.path)
    this.#options.takeNodes(Math.floor((pathBytes + heldBytes(entry)) / NODE_BYTES))
    if (name.startsWith(WHITEOUT)) this.#hide(parent, name, entry.path)
    else this.#place(parent, name, entry)
    if (!name.startsWith(WHITEOUT) || parent.attributes !== undefined) occupy(trail) // the mark of an opaque one describes it
  }

  /**
   * To be called after the last entry: a link may stand before its target, and a whiteout before a file of its name.
   *
   * @throws `layer-invalid`, `layer-hostile`, naming the path; what `takeNodes` throws.
   */
  async finish(): Promise<void> {
    for (const [index, { parent, name, target }] of this.#openLinks.entries()) {
      if (index % DONE_AT_ONCE === DONE_AT_ONCE - 1) await nextTurn()
      if (parent.children.get(name)?.kind !== 'lower-link') continue // replaced since
      const found = this.#find(target)
      if (found?.kind === 'inode') parent.children.set(name, found)
      else if (found?.kind === 'directory' && found.attributes !== undefined) throw linkToFolder(name, target)
    }
    for (const [index, { parent, name }] of this.#whiteouts.entries()) {
      if (index % DONE_AT_ONCE === DONE_AT_ONCE - 1) await nextTurn()
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
          present.vacant = false
          return
        }
        parent.children.set(name, {
          ...emptyDirectory(),
          attributes: attributesOf(entry, this.#options.warn),
          vacant: false,
        })
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
   * @returns The folder, behind all that it lies in; undefined when a file is in the way.
   */
  #makeDirectories(parts: ByteString[], path: ByteString): Place[] | undefined {
    const root: Place = { directory: this.root, pathBytes: 0 }
    const trail = [root]
    const way = new Way(parts, this.#options.takeNodes)
    for (let part = way.next(); part !== undefined; part = way.next()) {
      if (part === '..') {
        if (trail.length === 1) throw outside(path)
        trail.pop()
        continue
      }
      const here = trail.at(-1) ?? root
      const pathBytes = here.pathBytes + part.length + 1
      const next = here.directory.children.get(part)
      if (next === undefined) {
        checkName(part) // of a link's target
        if (pathBytes >= MAX_PATH_BYTES) throw tooDeep(path)
        const made = emptyDirectory()
        here.directory.children.set(part, made)
        this.#options.takeNodes(1)
        trail.push({ directory: made, pathBytes })
      } else if (next.kind === 'directory') {
        trail.push({ directory: next, pathBytes })
      } else if (next.kind === 'inode' && next.inode.kind === 'symlink') {
        const { target } = next.inode
        const refusal = way.follow(target)
        if (refusal === 'too-deep') throw tooDeep(path)
        if (refusal === 'circle') {
          throw new BandSoxError('layer-invalid', `${readable(path)} lies behind a circle of links`)
        }
        if (target.startsWith('/')) trail.length = 1
      } else {
        return undefined
      }
    }
    return trail
  }

  /** What stands at a path; symbolic links on the way are followed, the last part is not. */
  #find(path: ByteString): LayerNode | undefined {
    const trail: Directory[] = [this.root]
    const way = new Way(splitPath(path), this.#options.takeNodes)
    for (let part = way.next(); part !== undefined; part = way.next()) {
      if (part === '..') {
        if (trail.length === 1) throw outside(path)
        trail.pop()
        continue
      }
      const next = (trail.at(-1) ?? this.root).children.get(part)
      if (way.isAtEnd || next === undefined) return next
      if (next.kind === 'directory') {
        trail.push(next)
      } else if (next.kind === 'inode' && next.inode.kind === 'symlink') {
        const { target } = next.inode
        if (way.follow(target) !== undefined) return undefined
        if (target.startsWith('/')) trail.length = 1
      } else {
        return undefined
      }
    }
    return trail.at(-1)
  }
}

/** What is left of a path, with the targets of the symbolic links on its way: many short entries may ask for long walks. */
class Way {
  readonly #takeNodes: LayerTreeOptions['takeNodes']
  /** The next one last. */
  readonly #todo: ByteString[]
  #steps = 0
  #links = 0

  constructor(parts: readonly ByteString[], takeNodes: LayerTreeOptions['takeNodes']) {
    this.#takeNodes = takeNodes
    this.#todo = [...parts].reverse()
    this.#count(parts.length)
  }

  get isAtEnd(): boolean {
    return this.#todo.length === 0
  }

  /** The next part that leads anywhere. */
  next(): ByteString | undefined {
    for (;;) {
      const part = this.#todo.pop()
      if (part !== '' && part !== '.') return part
    }
  }

  /** @returns Why the link is not followed; undefined when it is. */
  follow(target: ByteString): 'circle' | 'too-deep' | undefined {
    if (++this.#links > MAX_LINKS) return 'circle'
    const parts = target.split('/')
    this.#count(parts.length)
    if (this.#steps > MAX_STEPS) return 'too-deep'
    this.#todo.push(...parts.reverse())
    return undefined
  }

  /** Before they are gone: a walk that is given up on its way has cost them as well. */
  #count(steps: number): void {
    const before = Math.floor(this.#steps / STEPS_PER_NODE)
    this.#steps += steps
    this.#takeNodes(Math.floor(this.#steps / STEPS_PER_NODE) - before)
  }
}

/** Something came into the last of these folders, so that it and all its parents are folders of the image. */
function occupy(trail: readonly Place[]): void {
  for (let depth = trail.length - 1; depth >= 0; depth--) {
    const directory = trail[depth]?.directory
    if (directory === undefined || !directory.vacant) return // then none above it is
    directory.vacant = false
  }
}

/** What an entry keeps in memory besides its place in the tree. */
function heldBytes({ path, target, xattrs, content }: TarEntry): number {
  let bytes = path.length + target.length + EXTENT_BYTES * (content.extents?.length ?? 0)
  for (const [name, value] of xattrs ?? []) bytes += name.length + value.length + ATTRIBUTE_BYTES
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
  const misleading: ByteString[] = []
  const unholdable: ByteString[] = []
  for (const [name, value] of entry.xattrs) {
    if (/^(trusted|user)\.overlay\./.test(name)) misleading.push(name)
    else if (/^(user|trusted|security)\../.test(name)) kept.set(name, value)
    else unholdable.push(name)
  }
  if (misleading.length > 0) warn?.(loss(path, misleading, 'they would mislead the overlay in the guest'))
  if (unholdable.length > 0) warn?.(loss(path, unholdable, 'the disk cannot hold them'))
  return { mode, uid, gid, mtime, xattrs: kept.size === 0 ? undefined : kept }
}

/** One for all of a file, and not all that there is: 5000 names of a file, each with a path of 4 KiB, would be 20 MB of text. */
function loss(path: ByteString, names: readonly ByteString[], why: string): string {
  const shown = names.slice(0, SHOWN_ATTRIBUTES).map((name) => readable(name.slice(0, SHOWN_CHARACTERS)))
  if (names.length > shown.length) shown.push(`${names.length - shown.length} more`)
  return `${readable(path.slice(0, SHOWN_CHARACTERS))} loses extended attributes, since ${why}: ${shown.join(', ')}`
}

const outside = (path: ByteString) =>
  new BandSoxError('layer-hostile', `${readable(path.slice(0, SHOWN_CHARACTERS))} leads out of the image`)

const tooDeep = (path: ByteString) =>
  new BandSoxError('layer-invalid', `${readable(path.slice(0, SHOWN_CHARACTERS))} lies too deep`)

const linkToFolder = (path: ByteString, target: ByteString) =>
  new BandSoxError('layer-invalid', `the hard link ${readable(path)} leads to a folder, ${readable(target)}`)
