/** Digests as they are written, `sha256:<hex>`, and as they name files. */
export const hexOf = (digest: string): string => digest.replace(/^sha256:/, '')
