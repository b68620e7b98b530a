/** Reads a layer once: counts it, hashes it, and learns what is in it and where. */
import { createHash } from 'node:crypto'
import { BandSoxError } from '@bandsox/sdk'
import { TarReader } from '../../tar/tar-reader.js'
import { decompress } from './decompress.js'
import { LayerTree } from './layer-tree.js'
import type { ImageLimits } from './limits.js'

/** What all layers of one image may take together. */
export class ImageBudget {
  readonly limits: ImageLimits
  #bytes = 0
  #entries = 0

  constructor(limits: ImageLimits) {
    this.limits = limits
  }

  /** @throws `image-too-large`. */
  takeBytes(count: number): void {
    this.#bytes += count
    if (this.#bytes <= this.limits.maxBytes) return
    throw new BandSoxError(
      'image-too-large',
      `its files have over ${this.limits.maxBytes} bytes (images.limits.maxBytes)`,
    )
  }

  /** @throws `image-too-large`. */
  takeEntries(count: number): void {
    this.#entries += count
    if (this.#entries <= this.limits.maxEntries) return
    throw new BandSoxError(
      'image-too-large',
      `it has over ${this.limits.maxEntries} files and folders (images.limits.maxEntries), where long names, many attributes ` +
        'and long links count as several',
    )
  }
}

export interface LayerIndexOptions {
  /** For messages. */
  digest: string
  /** Digest of the unpacked layer, as the image's configuration has it. */
  diffId: string
  budget: ImageBudget
  warn?: ((message: string) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * @param source The blob as it was published.
 * @throws `layer-invalid`, `layer-hostile`, `image-too-large`, `digest-mismatch`, each naming the layer; what `source` throws.
 */
export async function indexLayer(
  source: AsyncIterable<Buffer>,
  { digest, diffId, budget, warn, signal }: LayerIndexOptions,
): Promise<LayerTree> {
  const takeNodes = (count: number) => budget.takeEntries(count)
  const tree = new LayerTree({ allowDevices: budget.limits.allowDevices, takeNodes, warn })
  const reader = new TarReader((entry) => {
    const { sizeBytes, storedBytes } = entry.content
    budget.takeBytes(Math.max(sizeBytes - storedBytes, 0)) // the holes; what is stored is counted as it comes
    tree.add(entry)
  })
  const hash = createHash('sha256')
  try {
    for await (const piece of decompress(source, signal)) {
      signal?.throwIfAborted()
      budget.takeBytes(piece.length)
      hash.update(piece)
      reader.write(piece)
    }
    reader.end()
    await tree.finish()
  } catch (error) {
    throw named(error, digest)
  }
  const found = `sha256:${hash.digest('hex')}`
  if (found === diffId) return tree
  throw new BandSoxError(
    'digest-mismatch',
    `layer ${digest} unpacks to something with the digest ${found}, and the image's configuration says ${diffId}`,
  )
}

/** Says which layer it was. */
function named(error: unknown, digest: string): unknown {
  if (!(error instanceof BandSoxError)) return error
  const { code, message, hint } = error
  if (code !== 'layer-invalid' && code !== 'layer-hostile' && code !== 'image-too-large') return error
  return new BandSoxError(code, `layer ${digest}: ${message}`, { cause: error, ...(hint !== undefined && { hint }) })
}
