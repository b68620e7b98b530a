/**
 * Writer for cpio archives of the "newc" kind, which the kernel unpacks as its initramfs. No I/O, and no root needed for
 * device nodes: they are only entries here.
 *
 * @see Linux, Documentation/driver-api/early-userspace/buffer-format.rst
 */

export type CpioEntry =
  | { kind: 'file'; path: string; mode: number; content: Buffer }
  | { kind: 'directory'; path: string; mode: number }
  | { kind: 'character-device'; path: string; mode: number; major: number; minor: number }

/** The file type bits of st_mode, see inode(7). */
const typeBits = { file: 0o100000, directory: 0o040000, 'character-device': 0o020000 } as const
const ALIGNMENT_BYTES = 4

/**
 * The archive's bytes, in pieces. Equal entries give equal bytes: owner root, no times, numbered in order.
 *
 * @param entries Without a leading slash; a folder stands before what is in it.
 */
export function* writeCpio(entries: Iterable<CpioEntry>): Generator<Buffer> {
  let inode = 1
  for (const entry of entries) yield* writeEntry(entry, inode++)
  yield* writeEntry({ kind: 'file', path: 'TRAILER!!!', mode: 0, content: Buffer.alloc(0) }, 0)
}

function* writeEntry(entry: CpioEntry, inode: number): Generator<Buffer> {
  const content = entry.kind === 'file' ? entry.content : Buffer.alloc(0)
  const device = entry.kind === 'character-device' ? entry : { major: 0, minor: 0 }
  const name = Buffer.from(`${entry.path}\0`)
  const fields = [
    inode,
    typeBits[entry.kind] + entry.mode,
    0, // uid
    0, // gid
    entry.kind === 'directory' ? 2 : 1, // links
    0, // mtime
    content.length,
    0, // major and minor of the device that held the file
    0,
    device.major,
    device.minor,
    name.length,
    0, // checksum, unused by this kind
  ]
  const header = Buffer.from(`070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}`)
  yield* padded(Buffer.concat([header, name]))
  yield* padded(content)
}

function* padded(bytes: Buffer): Generator<Buffer> {
  if (bytes.length > 0) yield bytes
  const missing = -bytes.length & (ALIGNMENT_BYTES - 1)
  if (missing > 0) yield Buffer.alloc(missing)
}
