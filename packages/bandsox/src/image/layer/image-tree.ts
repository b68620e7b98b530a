/**
 * The layers of an image merged into one tree, from the top down: when a layer is merged, all that can hide its files is known,
 * so that they can be written at once, while the layers below are still being fetched.
 *
 * The rule is overlayfs's, which Docker and containerd run images on: what is higher hides what is lower; two folders of one
 * path show the contents of both, with the attributes of the higher; a folder above a file, or above a symbolic link, hides it
 * and all that is below it.
 */
import { BandSoxError } from '@bandsox/sdk'
import {
  type Directory,
  defaultAttributes,
  emptyDirectory,
  type Inode,
  type LayerNode,
  type LayerTree,
} from './layer-tree.js'
import { type Attributes, type ByteString, readable } from './tar-entry.js'

/** A hard link to a file that one of the next layers has. */
interface Wanted {
  path: ByteString
  target: ByteString
}

export class ImageTree {
  readonly #root: Directory = emptyDirectory()
  #wanted: Wanted[] = []

  /**
   * Merges the next lower layer; the tree takes over its nodes.
   *
   * @returns The files of this layer that are in the image, with their names, in the order of its tar.
   * @throws `layer-invalid` when a hard link leads to nothing.
   */
  merge(layer: LayerTree): Inode[] {
    // Before the merge, which mixes this layer's folders with those of higher ones.
    this.#wanted = this.#wanted.filter((wanted) => !resolve(wanted, layer.root))
    if (!this.#root.opaque) this.#mergeDirectory(this.#root, layer.root, '')
    return layer.inodes.filter(({ paths }) => paths.length > 0)
  }

  /**
   * To be called after the lowest layer.
   *
   * @returns All folders with their attributes, parents first; the root has an empty path.
   * @throws `layer-invalid` when a hard link leads to nothing.
   */
  *finish(): Generator<{ path: ByteString; attributes: Attributes }> {
    const [lost] = this.#wanted
    if (lost !== undefined) throw lostLink(lost)
    removeVacant(this.#root)
    const todo: { path: ByteString; directory: Directory }[] = [{ path: '', directory: this.#root }]
    for (let next = todo.pop(); next !== undefined; next = todo.pop()) {
      const { path, directory } = next
      yield { path, attributes: directory.attributes ?? defaultAttributes }
      for (const [name, node] of directory.children) {
        if (node.kind === 'directory') todo.push({ path: join(path, name), directory: node })
      }
    }
  }

  #mergeDirectory(into: Directory, from: Directory, path: ByteString): void {
    into.attributes ??= from.attributes
    for (const [name, node] of from.children) {
      const present = into.children.get(name)
      const childPath = join(path, name)
      if (present === undefined) {
        into.children.set(name, node)
        this.#adopt(node, childPath)
      } else if (present.kind !== 'directory' || present.opaque) {
        // hidden
      } else if (node.kind === 'directory') {
        this.#mergeDirectory(present, node, childPath)
      } else if (isVacant(present)) {
        into.children.set(name, node)
        this.#adopt(node, childPath)
      } else {
        present.opaque = true // a file in between hides what is below itself
      }
    }
    into.opaque ||= from.opaque
  }

  /** Gives the files of a subtree that has become part of the image their names. */
  #adopt(node: LayerNode, path: ByteString): void {
    if (node.kind === 'inode') node.inode.paths.push(path)
    else if (node.kind === 'lower-link') this.#wanted.push({ path, target: node.target })
    else if (node.kind === 'directory') {
      for (const [name, child] of node.children) this.#adopt(child, join(path, name))
    }
  }
}

/** @returns Whether it was found; else its target may be another one now. @throws `layer-invalid` when it cannot be any more. */
function resolve(wanted: Wanted, root: Directory): boolean {
  let here = root
  let isOpaque = root.opaque
  const parts = wanted.target.split('/')
  for (const [index, part] of parts.entries()) {
    const next = here.children.get(part)
    if (next === undefined) {
      if (isOpaque) throw lostLink(wanted)
      return false
    }
    const isLast = index === parts.length - 1
    if (isLast && next.kind === 'inode') {
      next.inode.paths.push(wanted.path)
      return true
    }
    if (isLast && next.kind === 'lower-link') {
      wanted.target = next.target
      return false
    }
    if (next.kind !== 'directory' || (isLast && !isVacant(next))) throw lostLink(wanted)
    here = next
    isOpaque ||= next.opaque
  }
  if (isOpaque) throw lostLink(wanted)
  return false // only whiteouts are in its place
}

/** Only whiteouts are in it, and no layer described it: it is no folder of the image. */
function isVacant({ attributes, children }: Directory): boolean {
  if (attributes !== undefined) return false
  for (const child of children.values()) {
    if (child.kind === 'directory' ? !isVacant(child) : child.kind !== 'whiteout') return false
  }
  return true
}

/** From the bottom up, each folder once. */
function removeVacant(directory: Directory): void {
  for (const [name, child] of directory.children) {
    if (child.kind !== 'directory') continue
    removeVacant(child)
    if (child.attributes === undefined && [...child.children.values()].every(({ kind }) => kind === 'whiteout')) {
      directory.children.delete(name)
    }
  }
}

const join = (path: ByteString, name: ByteString): ByteString => (path === '' ? name : `${path}/${name}`)

const lostLink = ({ path, target }: Wanted) =>
  new BandSoxError(
    'layer-invalid',
    `the hard link ${readable(path)} leads to nothing: no lower layer has ${readable(target)}`,
  )
