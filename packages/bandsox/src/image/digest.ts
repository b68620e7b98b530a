/** Digests as manifests write them, `sha256:<hex>`, and as they name files. No I/O. */
import { createHash } from 'node:crypto'

export const sha256 = (bytes: Uint8Array): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`

export const hexOf = (digest: string): string => digest.replace(/^sha256:/, '')
