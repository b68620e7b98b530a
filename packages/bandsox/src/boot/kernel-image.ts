/** Makes the ELF kernel that is booted from what a kernel is published as, a bzImage or the ELF itself. */
import { copyFile, open, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError } from '@bandsox/sdk'
import { hasPvhEntry, isElf } from '../artifact/elf.js'
import { type RecordedFile, recordFile } from '../artifact/recorded-file.js'
import { BZIMAGE_HEAD_BYTES, type BzImage, isBzImage, parseBzImage } from './bzimage.js'
import { decompressFile, detectCompression } from './decompress.js'

/** A payload that claims to be larger when unpacked is damaged: kernels have some 50 MB. */
const MAX_VMLINUX_BYTES = 1024 * 1024 * 1024

export interface UnpackedKernel {
  /** What `uname -r` prints in the guest. */
  release: string
  vmlinux: RecordedFile
  bzImage?: RecordedFile
}

/**
 * Puts `vmlinux`, and `bzImage` when the kernel comes as one, into a folder.
 *
 * @throws `artifact-damaged` saying what is wrong with it.
 */
export async function unpackKernel(image: string, directory: string, signal?: AbortSignal): Promise<UnpackedKernel> {
  const vmlinux = join(directory, 'vmlinux')
  const head = await readHead(image)
  if (isBzImage(head)) {
    await copyFile(image, join(directory, 'bzImage'))
    await unpackPayload(image, parseBzImage(head), vmlinux, signal)
  } else if (isElf(head)) {
    await copyFile(image, vmlinux)
  } else {
    throw new BandSoxError('artifact-damaged', 'it is neither a bzImage nor a 64-bit ELF file')
  }
  await requirePvhEntry(vmlinux)
  return {
    release: isBzImage(head) ? parseBzImage(head).release : await findRelease(vmlinux),
    vmlinux: await recordFile(directory, 'vmlinux'),
    ...(isBzImage(head) ? { bzImage: await recordFile(directory, 'bzImage') } : {}),
  }
}

/** Decompresses the ELF kernel inside a bzImage. */
async function unpackPayload(image: string, header: BzImage, vmlinux: string, signal?: AbortSignal): Promise<void> {
  const payload = await readPayload(image, header)
  const compression = detectCompression(payload)
  if (compression === 'none' && !isElf(payload)) {
    const start = payload.toString('hex', 0, 6)
    throw new BandSoxError('artifact-damaged', `its payload is of an unknown compression: it starts with ${start}`)
  }
  // The last word of a payload is its unpacked size: gzip's own, or appended by the kernel's build (scripts/Makefile.lib,
  // size_append), and then no part of what the tool reads.
  const expectedBytes = compression === 'none' ? payload.length : payload.readUInt32LE(payload.length - 4)
  if (expectedBytes > MAX_VMLINUX_BYTES) {
    throw new BandSoxError('artifact-damaged', `its payload claims ${expectedBytes} bytes unpacked`)
  }
  const hasAppendedSize = compression !== 'none' && compression !== 'gzip'
  const packed = `${vmlinux}.packed`
  await writeFile(packed, hasAppendedSize ? payload.subarray(0, -4) : payload)
  await decompressFile({ input: packed, output: vmlinux, compression, signal })
  await rm(packed, { force: true })
  const { size } = await stat(vmlinux)
  if (size === expectedBytes) return
  throw new BandSoxError('artifact-damaged', `its payload unpacks to ${size} bytes instead of ${expectedBytes}`)
}

async function readPayload(image: string, { payloadOffset, payloadBytes }: BzImage): Promise<Buffer> {
  const file = await open(image)
  try {
    const { size } = await file.stat()
    if (payloadBytes < 8 || payloadOffset + payloadBytes > size) {
      throw new BandSoxError('artifact-damaged', `the bzImage is cut short: it has ${size} bytes`)
    }
    const { buffer } = await file.read({ buffer: Buffer.alloc(payloadBytes), position: payloadOffset })
    return buffer
  } finally {
    await file.close()
  }
}

async function requirePvhEntry(vmlinux: string): Promise<void> {
  const file = await open(vmlinux)
  try {
    if (await hasPvhEntry(file)) return
  } finally {
    await file.close()
  }
  throw new BandSoxError(
    'artifact-damaged',
    'it has no PVH entry, which QEMU needs to boot an ELF kernel: build it with CONFIG_PVH=y',
  )
}

/** An ELF kernel holds its banner as text: "Linux version 6.1.0 (who@where) …". */
async function findRelease(vmlinux: string): Promise<string> {
  const marker = 'Linux version '
  const content = await readFile(vmlinux)
  for (let at = content.indexOf(marker); at >= 0; at = content.indexOf(marker, at + 1)) {
    const release = /^[\w.+~-]+(?= \()/.exec(
      content.toString('latin1', at + marker.length, at + marker.length + 128),
    )?.[0]
    if (release !== undefined) return release
  }
  throw new BandSoxError('artifact-damaged', 'it holds no "Linux version": not a Linux kernel')
}

async function readHead(path: string): Promise<Buffer> {
  const file = await open(path)
  try {
    const { buffer, bytesRead } = await file.read({ buffer: Buffer.alloc(BZIMAGE_HEAD_BYTES), position: 0 })
    return buffer.subarray(0, bytesRead)
  } finally {
    await file.close()
  }
}
