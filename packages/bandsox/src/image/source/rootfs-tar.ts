/** A plain tar of a root file system, as `docker export` or debootstrap's users make them: an image of one layer. */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { decompress } from '../layer/decompress.js'
import { ImageBudget } from '../layer/layer-index.js'
import type { ImageLimits } from '../layer/limits.js'
import type { Platform } from '../manifest.js'
import { DEFAULT_PATH, singleLayerSource } from './single-layer.js'
import type { ImageSource } from './source.js'

const PIECE_BYTES = 1024 * 1024

export interface RootfsTarOptions {
  platform: Platform
  limits: ImageLimits
  /** Told what takes time. */
  onActivity?: ((what: string) => void) | undefined
  signal?: AbortSignal | undefined
}

/** @throws `layer-invalid` when it cannot be unpacked; `image-too-large`; `file-not-found`; `signal.reason`. */
export async function openRootfsTar(
  path: string,
  { platform, limits, onActivity, signal }: RootfsTarOptions,
): Promise<ImageSource> {
  onActivity?.(`hashing ${path}`)
  const budget = new ImageBudget(limits)
  const packed = createHash('sha256')
  const unpacked = createHash('sha256')
  async function* hashed(): AsyncGenerator<Buffer> {
    for await (const piece of createReadStream(path, { highWaterMark: PIECE_BYTES })) {
      signal?.throwIfAborted()
      packed.update(piece as Buffer)
      yield piece as Buffer
    }
  }
  try {
    for await (const piece of decompress(hashed(), signal)) {
      budget.takeBytes(piece.length)
      unpacked.update(piece)
    }
  } catch (error) {
    signal?.throwIfAborted()
    if (isSystemError(error, 'ENOENT')) {
      throw new BandSoxError('file-not-found', `there is no file ${path}`, { cause: error })
    }
    if (!(error instanceof BandSoxError)) throw error
    throw new BandSoxError(error.code, `cannot read ${path}: ${error.message}`, { cause: error })
  }
  return singleLayerSource({
    name: path,
    platform,
    config: { Env: [DEFAULT_PATH], Cmd: ['/bin/sh'] },
    layer: {
      digest: `sha256:${packed.digest('hex')}`,
      diffId: `sha256:${unpacked.digest('hex')}`,
      size: (await stat(path)).size,
    },
    open: (offset) => createReadStream(path, { start: offset, highWaterMark: PIECE_BYTES }),
  })
}
