/** Progress of a transfer: one line on stderr that rewrites itself, on a terminal only. */
import type { TransferOptions } from '@bandsox/sdk'
import { rateText, sizeText } from './text.js'

/** @returns The callback for a transfer, and what takes the line away at its end. */
export function progressLine(label: string): {
  onProgress: NonNullable<TransferOptions['onProgress']>
  clear: () => void
} {
  const startedAt = performance.now()
  if (!process.stderr.isTTY) return { onProgress: () => undefined, clear: () => undefined }
  return {
    onProgress({ bytes, totalBytes }) {
      const share =
        totalBytes === undefined || totalBytes === 0
          ? ''
          : `${Math.floor((100 * bytes) / totalBytes)} % of ${sizeText(totalBytes)}, `
      process.stderr.write(
        `\r\x1b[K${label}: ${share}${sizeText(bytes)} at ${rateText(bytes, performance.now() - startedAt)}`,
      )
    },
    clear: () => void process.stderr.write('\r\x1b[K'),
  }
}
