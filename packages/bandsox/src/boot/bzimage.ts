/**
 * The header of a Linux bzImage. No I/O.
 *
 * A bzImage is a loader with the real kernel, an ELF file, compressed inside it. Under QEMU's TCG the loader's
 * decompression costs 0.2 to 0.6 s of every cold boot, so we unpack the payload once on the host and boot the ELF.
 *
 * @see Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header"
 */
import { BandSoxError } from '@bandsox/sdk'

/** As much of a file as {@link parseBzImage} needs: the setup code, at most 64 sectors, and one sector before it. */
export const BZIMAGE_HEAD_BYTES = 65 * 512

const SECTOR_BYTES = 512
/** The first protocol version with the field payload_offset, since Linux 2.6.24. */
const MIN_PROTOCOL = 0x0208
/** The kernel's own bound, __NEW_UTS_LEN. */
const MAX_RELEASE_BYTES = 64

export interface BzImage {
  /** Of the compressed ELF kernel, in the file. */
  payloadOffset: number
  payloadBytes: number
  /** What `uname -r` prints in the guest. */
  release: string
}

export const isBzImage = (head: Buffer): boolean => head.toString('latin1', 0x202, 0x206) === 'HdrS'

/**
 * @param head The first {@link BZIMAGE_HEAD_BYTES} of the file, or all of a shorter one.
 * @throws `artifact-damaged` when it is not a bzImage, or an ancient one.
 */
export function parseBzImage(head: Buffer): BzImage {
  if (!isBzImage(head) || head.length < 0x250)
    throw new BandSoxError('artifact-damaged', 'not a Linux bzImage: it has no HdrS signature')
  const protocol = head.readUInt16LE(0x206)
  if (protocol < MIN_PROTOCOL) {
    throw new BandSoxError(
      'artifact-damaged',
      `its boot protocol 0x${protocol.toString(16)} is older than 0x0208: no payload is named`,
    )
  }
  const setupSectors = head.readUInt8(0x1f1) || 4 // 0 means 4, for the sake of the oldest kernels
  const versionAt = head.readUInt16LE(0x20e) + SECTOR_BYTES
  // It becomes part of a file name, and the file may come from anywhere.
  const release = /^[\w.+~-]+/.exec(head.toString('latin1', versionAt, versionAt + MAX_RELEASE_BYTES))?.[0]
  if (release === undefined) throw new BandSoxError('artifact-damaged', 'the bzImage names no release')
  return {
    payloadOffset: (setupSectors + 1) * SECTOR_BYTES + head.readUInt32LE(0x248),
    payloadBytes: head.readUInt32LE(0x24c),
    release,
  }
}
