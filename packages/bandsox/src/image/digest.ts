/** The digest of bytes, as manifests write it. No I/O. */
import { createHash } from 'node:crypto'

export const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`
