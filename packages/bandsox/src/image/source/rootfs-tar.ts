/** A plain tar of a root file system, as `docker export` or debootstrap's users make them: an image of one layer. */
import { createHash } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { stat } from 'node:fs/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { decompress } from '../layer/decompress.js'
import type { Platform } from '../manifest.js'
import { singleLayerSource } from './single-layer.js'
import type { ImageSource } from './source.js'

const PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
const PIECE_BYTES = 1024 * 1024

/** @throws `layer-invalid` when it cannot be unpacked; `file-not-found`. */
export async function openRootfsTar(path: string, platform: Platform, signal?: AbortSignal): Promise<ImageSource> {
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
    for await (const piece of decompress(hashed(), signal)) unpacked.update(piece)
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) {
      throw new BandSoxError('file-not-found', `there is no file ${path}`, { cause: error })
    }
    if (!(error instanceof BandSoxError)) throw error
    throw new BandSoxError(error.code, `cannot read ${path}: ${error.message}`, { cause: error })
  }
  return singleLayerSource({
    name: path,
    platform,
    config: { Env: [PATH], Cmd: ['/bin/sh'] },
    layer: {
      digest: `sha256:${packed.digest('hex')}`,
      diffId: `sha256:${unpacked.digest('hex')}`,
      size: (await stat(path)).size,
    },
    open: (offset) => createReadStream(path, { start: offset, highWaterMark: PIECE_BYTES }),
  })
}
