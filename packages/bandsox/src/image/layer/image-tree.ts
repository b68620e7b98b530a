/**
 * The layers of an image merged into one tree, from the top down: when a layer is merged, all that can hide its files is known,
 * so that they can be written at once, while the layers below are still being fetched.
 *
 * The rule is overlayfs's, which Docker and containerd run images on: what is higher hides what is lower; two folders of one
 * path show the contents of both, with the attributes of the higher; a folder above a file, or above a symbolic link, hides it
 * and all that is below it.
 */
import { setImmediate as nextTurn } from 'node:timers/promises'
import { BandSoxError } from '@bandsox/sdk'
import { type Attributes, type ByteString, readable } from '../../tar/tar-entry.js'
import {
  type Directory,
  defaultAttributes,
  emptyDirectory,
  type Inode,
  isVacant,
  type LayerNode,
  type LayerTree,
} from './layer-tree.js'

/** Nodes, or steps to the targets of links, before others on the event loop have their turn: some 20 ms of work. */
const WORK_AT_ONCE = 50_000
/**
 * Parts of the targets of hard links to lower layers, in all layers that they are looked for in: some seconds of work. Ten
 * thousand such links of ten parts each through a hundred layers, which no engine makes, take 10 million.
 */
const MAX_LINK_STEPS = 2 ** 26

/** A folder of the layer that is merged. */
interface Visit {
  from: Directory
  /** The folder of the image that it meets; undefined when all of it has come into the image. */
  into: Directory | undefined
  path: ByteString
  /** Whose children these folders are. */
  above: Visit | undefined
}

export class ImageTree {
  readonly #root: Directory = emptyDirectory()
  readonly #maxLinkSteps: number
  /** Names of hard links to files that one of the next layers has, by target: a million of them may have the same. */
  #wanted = new Map<ByteString, ByteString[]>()
  #linkSteps = 0
  #workUntilTurn = WORK_AT_ONCE

  constructor(options: { maxLinkSteps?: number } = {}) {
    this.#maxLinkSteps = options.maxLinkSteps ?? MAX_LINK_STEPS
  }

  /**
   * Merges the next lower layer; the tree takes over its nodes.
   *
   * @returns The files of this layer that are in the image, with their names, in the order of its tar.
   * @throws `layer-invalid` when a hard link leads to nothing, `image-too-large` when too many lead far down.
   */
  async merge(layer: LayerTree): Promise<Inode[]> {
    // Before the merge, which mixes this layer's folders with those of higher ones.
    await this.#resolveWanted(layer.root)
    if (!this.#root.opaque) await this.#mergeDirectory(layer.root)
    return layer.inodes.filter(({ paths }) => paths.length > 0)
  }

  /**
   * To be called after the lowest layer.
   *
   * @returns All folders with their attributes, parents first; the root has an empty path.
   * @throws `layer-invalid` when a hard link leads to nothing.
   */
  *finish(): Generator<{ path: ByteString; attributes: Attributes }> {
    for (const [target, paths] of this.#wanted) throw lostLink(target, paths)
    const todo: { path: ByteString; directory: Directory }[] = [{ path: '', directory: this.#root }]
    for (let next = todo.pop(); next !== undefined; next = todo.pop()) {
      const { path, directory } = next
      yield { path, attributes: directory.attributes ?? defaultAttributes }
      for (const [name, node] of directory.children) {
        if (node.kind === 'directory' && !node.vacant) todo.push({ path: join(path, name), directory: node })
      }
    }
  }

  async #resolveWanted(root: Directory): Promise<void> {
    const wanted = this.#wanted
    this.#wanted = new Map()
    for (const [target, paths] of wanted) {
      const parts = target.split('/')
      this.#linkSteps += parts.length
      if (this.#linkSteps > this.#maxLinkSteps) throw tooManyLinks(this.#maxLinkSteps)
      if (this.#isTurnOver(parts.length)) await nextTurn()
      const found = resolve(parts, root)
      if (found === 'lost') throw lostLink(target, paths)
      if (found === 'lower') this.#want(target, paths)
      else if (found.kind === 'lower-link') this.#want(found.target, paths)
      else for (const path of paths) found.inode.paths.push(path)
    }
  }

  #want(target: ByteString, paths: ByteString[]): void {
    const others = this.#wanted.get(target) ?? []
    // The few to the many: these may go from target to target through all layers.
    const [few, many] = others.length < paths.length ? [others, paths] : [paths, others]
    for (const path of few) many.push(path)
    this.#wanted.set(target, many)
  }

  async #mergeDirectory(root: Directory): Promise<void> {
    // Not by recursion, which could not let others have their turn.
    const todo: Visit[] = [{ from: root, into: this.#root, path: '', above: undefined }]
    for (let visit = todo.pop(); visit !== undefined; visit = todo.pop()) {
      const { from, into } = visit
      if (into !== undefined) {
        if (into.attributes === undefined && from.attributes !== undefined) occupy(visit)
        into.attributes ??= from.attributes
        into.opaque ||= from.opaque
      }
      for (const [name, node] of from.children) {
        if (this.#isTurnOver(1)) await nextTurn()
        const next = this.#meet(visit, name, node)
        if (next !== undefined) todo.push(next)
      }
    }
  }

  /** Brings one node of the layer into the image, unless it is hidden. @returns What is to be visited for it. */
  #meet(visit: Visit, name: ByteString, node: LayerNode): Visit | undefined {
    const path = join(visit.path, name)
    const { into } = visit
    const present = into?.children.get(name)
    if (present !== undefined) {
      if (present.kind !== 'directory' || present.opaque) return undefined // hidden
      if (node.kind === 'directory') return { from: node, into: present, path, above: visit }
      if (!present.vacant) {
        present.opaque = true // a file in between hides what is below itself
        return undefined
      }
    }
    if (into !== undefined) {
      into.children.set(name, node)
      if (!isVacant(node)) occupy(visit)
    }
    if (node.kind === 'directory') return { from: node, into: undefined, path, above: visit }
    if (node.kind === 'inode') node.inode.paths.push(path)
    else if (node.kind === 'lower-link') this.#want(node.target, [path])
    return undefined
  }

  /** One layer may have a million nodes. @param work That is about to be done. */
  #isTurnOver(work: number): boolean {
    this.#workUntilTurn -= work
    if (this.#workUntilTurn > 0) return false
    this.#workUntilTurn = WORK_AT_ONCE
    return true
  }
}

/** @returns The file, or a link to one of a lower layer; whether a lower layer may have it, when this one has nothing there. */
function resolve(
  parts: readonly ByteString[],
  root: Directory,
): (LayerNode & { kind: 'inode' | 'lower-link' }) | 'lower' | 'lost' {
  let here = root
  let isOpaque = root.opaque
  for (const [index, part] of parts.entries()) {
    const next = here.children.get(part)
    if (next === undefined) break
    const isLast = index === parts.length - 1
    if (isLast && (next.kind === 'inode' || next.kind === 'lower-link')) return next
    if (next.kind !== 'directory' || (isLast && !next.vacant)) return 'lost'
    here = next
    isOpaque ||= next.opaque
  }
  return isOpaque ? 'lost' : 'lower'
}

/** Something came into the folder that is visited, so that it and all its parents are folders of the image. */
function occupy(visit: Visit): void {
  for (let each: Visit | undefined = visit; each?.into?.vacant; each = each.above) each.into.vacant = false
}

const join = (path: ByteString, name: ByteString): ByteString => (path === '' ? name : `${path}/${name}`)

const lostLink = (target: ByteString, [path = '']: readonly ByteString[]) =>
  new BandSoxError(
    'layer-invalid',
    `the hard link ${readable(path)} leads to nothing: no lower layer has ${readable(target)}`,
  )

const tooManyLinks = (steps: number) =>
  new BandSoxError('image-too-large', `its hard links to lower layers take over ${steps} steps to their targets`, {
    hint: 'no ordinary image has so many: do not use it',
  })
