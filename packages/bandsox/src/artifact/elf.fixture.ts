/** Small ELF files for tests: as much of one as our readers look at. */

interface Segment {
  /** 1 load, 3 interpreter, 4 note. */
  type: number
  content: Buffer
}

/** An ELF file with these segments and sections. */
export function elfFile({
  segments = [],
  sections = {},
}: {
  segments?: Segment[]
  sections?: Record<string, Buffer>
}): Buffer {
  const names = Buffer.from(`\0${Object.keys(sections).join('\0')}\0.shstrtab\0`)
  const contents = [...segments.map(({ content }) => content), ...Object.values(sections), names]
  const segmentTable = 64
  const sectionTable = segmentTable + segments.length * 56
  const sectionCount = Object.keys(sections).length + 2 // the empty first one, and the names
  let offset = sectionTable + sectionCount * 64
  const offsets = contents.map((content) => {
    offset += content.length
    return offset - content.length
  })
  const head = Buffer.alloc(sectionTable + sectionCount * 64)
  head.write('\x7fELF\x02\x01\x01', 'latin1')
  head.writeBigUInt64LE(BigInt(segmentTable), 0x20)
  head.writeBigUInt64LE(BigInt(sectionTable), 0x28)
  head.writeUInt16LE(56, 0x36)
  head.writeUInt16LE(segments.length, 0x38)
  head.writeUInt16LE(64, 0x3a)
  head.writeUInt16LE(sectionCount, 0x3c)
  head.writeUInt16LE(sectionCount - 1, 0x3e)
  for (const [index, { type, content }] of segments.entries()) {
    const at = segmentTable + index * 56
    head.writeUInt32LE(type, at)
    head.writeBigUInt64LE(BigInt(offsets[index] ?? 0), at + 8)
    head.writeBigUInt64LE(BigInt(content.length), at + 0x20)
  }
  for (const [index, name] of [...Object.keys(sections), '.shstrtab'].entries()) {
    const at = sectionTable + (index + 1) * 64
    head.writeUInt32LE(names.indexOf(`${name}\0`), at)
    head.writeBigUInt64LE(BigInt(offsets[segments.length + index] ?? 0), at + 0x18)
    head.writeBigUInt64LE(BigInt(contents[segments.length + index]?.length ?? 0), at + 0x20)
  }
  return Buffer.concat([head, ...contents])
}

/** An ELF note, see elf(5). */
export function elfNote(name: string, type: number, value: Buffer): Buffer {
  const padded = (bytes: Buffer) => Buffer.concat([bytes, Buffer.alloc(-bytes.length & 3)])
  const header = Buffer.alloc(12)
  header.writeUInt32LE(name.length + 1, 0)
  header.writeUInt32LE(value.length, 4)
  header.writeUInt32LE(type, 8)
  return Buffer.concat([header, padded(Buffer.from(`${name}\0`)), padded(value)])
}

/** What our readers take for a kernel with a PVH entry. */
export const elfKernel = (release: string): Buffer =>
  elfFile({
    segments: [
      { type: 1, content: Buffer.from(`Linux version %s\0Linux version ${release} (who@where) #1\n\0`) },
      { type: 4, content: Buffer.concat([elfNote('GNU', 3, Buffer.alloc(20)), elfNote('Xen', 18, Buffer.alloc(8))]) },
    ],
  })

/** What our readers take for a kernel module. */
export const elfModule = (depends: readonly string[]): Buffer =>
  elfFile({
    sections: { '.text': Buffer.alloc(8), '.modinfo': Buffer.from(`license=GPL\0depends=${depends.join(',')}\0`) },
  })
