/** Trees described by guest/cmd/tree-digest, and how they differ. */
import { fileURLToPath } from 'node:url'
import { runTool } from './test-tools.js'

/** Static, so that it also runs in a guest that has nothing else. */
export const treeDigestProgram = fileURLToPath(new URL('../../../packages/bandsox/native/tree-digest', import.meta.url))

/** A path and what an image has to preserve of it. In `path`, `target` and names of xattrs, odd bytes are `\xhh`. */
export interface TreeEntry {
  /** Relative to the root, which is `.` itself. */
  path: string
  type: 'file' | 'folder' | 'symlink' | 'fifo' | 'socket' | 'character device' | 'block device'
  /** Octal, four digits. */
  mode: string
  uid: number
  gid: number
  /** 0 for folders. */
  links: number
  /** `major:minor` */
  device?: string
  target?: string
  size?: number
  xxh64?: string
  /** The first path of the same file, where it has several links. */
  sameAs?: string
  /** Values in hexadecimal. */
  xattrs?: Record<string, string>
}

/** @param options `skip`: paths relative to the root that are left out, with all below. */
export async function digestTree(root: string, options: { skip?: readonly string[] } = {}): Promise<TreeEntry[]> {
  const skip = (options.skip ?? []).flatMap((each) => ['-skip', each])
  return parseTreeDigest(await runTool([treeDigestProgram, '-root', root, ...skip]))
}

/** @param printed Standard output of the program. */
export const parseTreeDigest = (printed: string): TreeEntry[] =>
  printed
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as TreeEntry)

/** @returns A sentence for each path that is in one tree only, or not the same in both. */
export function differences(expected: readonly TreeEntry[], actual: readonly TreeEntry[]): string[] {
  const found: string[] = []
  const remaining = new Map(actual.map((entry) => [entry.path, entry]))
  for (const entry of expected) {
    const other = remaining.get(entry.path)
    remaining.delete(entry.path)
    if (other === undefined) found.push(`missing: ${JSON.stringify(entry)}`)
    else if (JSON.stringify(other) !== JSON.stringify(entry))
      found.push(`expected ${JSON.stringify(entry)}, found ${JSON.stringify(other)}`)
  }
  for (const entry of remaining.values()) found.push(`not expected: ${JSON.stringify(entry)}`)
  return found
}
