/** Removes what no image needs any more. Only for who has the lock of `activity.ts`: what is being fetched looks unneeded. */
import { BandSoxError } from '@bandsox/sdk'
import { removeAbandoned } from '../artifact/publish.js'
import type { ImageRecord } from './image-record.js'
import type { ImageStore } from './image-store.js'

/** What `records` need, as digests of blobs and keys of disks. */
function needs(records: readonly ImageRecord[]): { blobs: Set<string>; disks: Set<string> } {
  return {
    blobs: new Set(
      records.flatMap(({ manifest, configuration, layers }) =>
        [manifest, configuration, ...layers].map(({ digest }) => digest),
      ),
    ),
    disks: new Set(records.map(({ disk }) => disk)),
  }
}

/**
 * Removes an image with its references, and of its disk and layers what no other image has.
 *
 * @returns Bytes that were freed.
 * @throws `artifact-damaged` when a record cannot be read, whose image may have the same disk or layers; nothing was removed.
 */
export async function removeImage(store: ImageStore, image: ImageRecord): Promise<number> {
  const [unreadable] = (await store.imageRecords()).damaged
  if (unreadable !== undefined) {
    const { message, hint } = unreadable.error
    throw new BandSoxError(
      'artifact-damaged',
      `cannot remove ${image.id}, while what it shares is not known: ${message}`,
      {
        cause: unreadable.error,
        ...(hint !== undefined && { hint }),
      },
    )
  }
  for (const { reference, image: id } of await store.references()) {
    if (id === image.id) await store.removeReference(reference)
  }
  // The record first: an image without its disk would be found, and one without a record is only garbage.
  await store.removeImage(image.id)
  const others = needs(await store.images())
  let freed = others.disks.has(image.disk) ? 0 : await store.removeDisk(image.disk)
  for (const digest of needs([image]).blobs) if (!others.blobs.has(digest)) freed += await store.blobs.remove(digest)
  return freed
}

/**
 * Removes what no image refers to, and what killed processes left. While a record cannot be read, which may be a newer version's,
 * no disk and no blob is taken for garbage.
 *
 * @returns Bytes that were freed.
 */
export async function removeGarbage(store: ImageStore): Promise<number> {
  await removeAbandoned(store.root)
  await store.removeUnfinishedDisks()
  let freed = await store.blobs.removeUnfinished()
  const { readable, damaged } = await store.imageRecords()
  if (damaged.length > 0) return freed
  const { blobs, disks } = needs(readable)
  for (const key of await store.disks()) if (!disks.has(key)) freed += await store.removeDisk(key)
  for (const digest of await store.blobs.digests()) if (!blobs.has(digest)) freed += await store.blobs.remove(digest)
  return freed
}

/**
 * Removes an image's layers: its disk stays, and they are fetched again when somebody exports it. Those stay that an image has which no
 * registry names, such as one that was committed over this one: it could not be exported any more.
 *
 * @returns Bytes that were freed.
 */
export async function removeLayers(store: ImageStore, image: ImageRecord): Promise<number> {
  const fetchable = new Set(
    (await store.references()).filter(({ origin }) => origin === 'registry').map(({ image: id }) => id),
  )
  const { blobs: needed } = needs((await store.images()).filter(({ id }) => id !== image.id && !fetchable.has(id)))
  let freed = 0
  for (const { digest } of image.layers) if (!needed.has(digest)) freed += await store.blobs.remove(digest)
  return freed
}

/** Bytes of all disks and blobs. */
export async function usedBytes(store: ImageStore): Promise<number> {
  let bytes = 0
  for (const key of await store.disks()) bytes += (await store.findDisk(key))?.sizeBytes ?? 0
  for (const digest of await store.blobs.digests()) bytes += (await store.blobs.sizeOf(digest)) ?? 0
  return bytes
}
