/** Makes the disk of an image anew, from its layers, where an earlier version has made it in another way. */
import { createReadStream } from 'node:fs'
import { BandSoxError } from '@bandsox/sdk'
import type { ImageRecord } from './image-record.js'
import { diskKey, type ImageStore } from './image-store.js'
import { parsePlatform } from './manifest.js'
import { type PullImageOptions, pullImage } from './pull.js'
import type { ImageSource } from './source/source.js'

export const hasEarlierDisk = ({ disk, diffIds }: ImageRecord): boolean => disk !== diskKey(diffIds)

/**
 * Nothing is fetched: an image whose layers were pruned keeps its disk, which works as it did. The old file stays for those that
 * share it, and is garbage then.
 *
 * @throws as `pullImage`.
 */
export async function renewDisk(
  record: ImageRecord,
  { store, ...options }: Pick<PullImageOptions, 'store' | 'limits' | 'onEvent' | 'signal'>,
): Promise<ImageRecord> {
  if (!hasEarlierDisk(record)) return record
  const needed = [record.manifest, record.configuration, ...record.layers]
  for (const { digest } of needed) if ((await store.blobs.sizeOf(digest)) === undefined) return record
  const { image } = await pullImage({
    ...{ store, source: storedSource(store, record), platform: parsePlatform(record.platform), ...options },
    ...{ reference: record.id, keepReference: false, origin: 'local' },
  })
  return image
}

/** An image of which all is here. */
function storedSource({ blobs }: ImageStore, { id, manifest: { digest, mediaType } }: ImageRecord): ImageSource {
  return {
    root: async () => ({ bytes: await blobs.readDocument(digest), mediaType, digest }),
    manifest: async (other) => {
      throw new BandSoxError('image-not-found', `the image ${id} has no manifest ${other.digest}`)
    },
    openBlob: async (blob, offset) => ({
      stream: createReadStream(blobs.pathOf(blob.digest), { start: offset }),
      startsAt: offset,
    }),
    close: async () => undefined,
  }
}
