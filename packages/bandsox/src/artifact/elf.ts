/** Reads what we need to know of ELF files, 64-bit little-endian ones, see elf(5). */
import type { FileHandle } from 'node:fs/promises'
import { BandSoxError } from '@bandsox/sdk'

const ELF_MAGIC = Buffer.from([0x7f, 0x45, 0x4c, 0x46, 2, 1]) // "\x7fELF", 64 bit, little-endian
const PT_INTERP = 3
const PT_NOTE = 4
const PROGRAM_HEADER_BYTES = 56
/** The note that QEMU looks for to start an ELF kernel. Source: xen/include/public/elfnote.h, XEN_ELFNOTE_PHYS32_ENTRY. */
const XEN_ELFNOTE_PHYS32_ENTRY = 18
/** Bounds on tables of a file that may come from anywhere; real kernels have about 5 headers and 1 KiB of notes. */
const MAX_PROGRAM_HEADERS = 64
const MAX_NOTE_BYTES = 1024 * 1024

export const isElf = (head: Buffer): boolean => head.subarray(0, ELF_MAGIC.length).equals(ELF_MAGIC)

/**
 * Reads the bytes of a section by name.
 *
 * @returns `undefined` when the file has no such section.
 * @throws `artifact-damaged` when it is not a whole ELF file.
 */
export function readSection(name: string, file: Buffer): Buffer | undefined {
  if (!isElf(file)) throw new BandSoxError('artifact-damaged', 'not a 64-bit ELF file')
  try {
    const tableOffset = Number(file.readBigUInt64LE(0x28))
    const entryBytes = file.readUInt16LE(0x3a)
    const count = file.readUInt16LE(0x3c)
    const header = (index: number) => {
      const at = tableOffset + index * entryBytes
      const offset = Number(file.readBigUInt64LE(at + 0x18))
      return {
        nameAt: file.readUInt32LE(at),
        data: file.subarray(offset, offset + Number(file.readBigUInt64LE(at + 0x20))),
      }
    }
    const names = header(file.readUInt16LE(0x3e)).data
    for (let index = 0; index < count; index++) {
      const { nameAt, data } = header(index)
      if (names.toString('latin1', nameAt, names.indexOf(0, nameAt)) === name) return data
    }
    return undefined
  } catch (error) {
    if (error instanceof RangeError)
      throw new BandSoxError('artifact-damaged', 'the ELF file is cut short', { cause: error })
    throw error
  }
}

/** The `key=value` strings that the kernel's build put into a module, several per key. */
export function readModuleInfo(module: Buffer): Map<string, string[]> {
  const info = new Map<string, string[]>()
  for (const entry of readSection('.modinfo', module)?.toString('utf8').split('\0') ?? []) {
    const at = entry.indexOf('=')
    if (at < 0) continue
    const key = entry.slice(0, at)
    info.set(key, [...(info.get(key) ?? []), entry.slice(at + 1)])
  }
  return info
}

/** True when QEMU can start this ELF kernel directly (`CONFIG_PVH`). */
export async function hasPvhEntry(kernel: FileHandle): Promise<boolean> {
  for (const { type, offset, sizeBytes } of await readProgramHeaders(kernel)) {
    if (type === PT_NOTE && holdsPvhNote(await readAt(kernel, offset, Math.min(sizeBytes, MAX_NOTE_BYTES)))) return true
  }
  return false
}

/** True when a program needs no loader and so no libraries: it runs in an image that holds nothing else. */
export async function isStatic(program: FileHandle): Promise<boolean> {
  return (await readProgramHeaders(program)).every(({ type }) => type !== PT_INTERP)
}

async function readProgramHeaders(file: FileHandle): Promise<{ type: number; offset: number; sizeBytes: number }[]> {
  const header = await readAt(file, 0, 64)
  if (!isElf(header)) throw new BandSoxError('artifact-damaged', 'not a 64-bit ELF file')
  const count = header.readUInt16LE(0x38)
  if (count > MAX_PROGRAM_HEADERS || header.readUInt16LE(0x36) !== PROGRAM_HEADER_BYTES) {
    throw new BandSoxError('artifact-damaged', `an ELF file with ${count} program headers`)
  }
  const table = await readAt(file, Number(header.readBigUInt64LE(0x20)), count * PROGRAM_HEADER_BYTES)
  return Array.from({ length: count }, (_, index) => {
    const at = index * PROGRAM_HEADER_BYTES
    const offset = Number(table.readBigUInt64LE(at + 8))
    return { type: table.readUInt32LE(at), offset, sizeBytes: Number(table.readBigUInt64LE(at + 0x20)) }
  })
}

/** Each note is three words (length of name, length of value, type), the name and the value, both padded to 4 bytes. */
function holdsPvhNote(notes: Buffer): boolean {
  const padded = (bytes: number) => Math.ceil(bytes / 4) * 4
  let at = 0
  while (at + 12 <= notes.length) {
    const nameBytes = notes.readUInt32LE(at)
    const name = notes.toString('latin1', at + 12, at + 12 + nameBytes)
    if (name === 'Xen\0' && notes.readUInt32LE(at + 8) === XEN_ELFNOTE_PHYS32_ENTRY) return true
    at += 12 + padded(nameBytes) + padded(notes.readUInt32LE(at + 4))
  }
  return false
}

async function readAt(file: FileHandle, position: number, sizeBytes: number): Promise<Buffer> {
  const { buffer, bytesRead } = await file.read({ buffer: Buffer.alloc(sizeBytes), position })
  if (bytesRead < sizeBytes) throw new BandSoxError('artifact-damaged', 'the ELF file is cut short')
  return buffer
}
