/** Keeps the images to a size: what can be had again goes, the least recently used first. Only under the lock of `activity.ts`. */
import { removeImage, removeLayers, usedBytes } from './collect.js'
import type { ImageRecord, ReferenceRecord } from './image-record.js'
import type { ImageStore } from './image-store.js'

export interface RoomOptions {
  maxBytes: number
  /** Images that stay whatever they take, but for their layers. */
  isKept: (id: string) => boolean
  onEvicted: (image: { id: string; references: string[] }) => void
}

/** A registry has it, so that it can be had again; what came from a file or an engine cannot. */
export const isOfRegistry = (references: readonly ReferenceRecord[]): boolean =>
  references.some(({ origin }) => origin === 'registry')

/** Whether all disks and blobs together keep to the size. */
export const isRoomy = async (store: ImageStore, maxBytes: number): Promise<boolean> =>
  (await usedBytes(store)) <= maxBytes

/** The layers of images that a registry has go first, which only export needs, then such images as are not kept. */
export async function makeRoom(store: ImageStore, { maxBytes, isKept, onEvicted }: RoomOptions): Promise<void> {
  const oldestFirst = await evictable(store)
  for (const { record } of oldestFirst) {
    if (await isRoomy(store, maxBytes)) return
    await removeLayers(store, record)
  }
  for (const { record, references } of oldestFirst) {
    if (await isRoomy(store, maxBytes)) return
    if (isKept(record.id)) continue
    await removeImage(store, record)
    onEvicted({ id: record.id, references })
  }
}

async function evictable(store: ImageStore): Promise<{ record: ImageRecord; references: string[] }[]> {
  const all = await store.references()
  const found = []
  for (const record of await store.images()) {
    const own = all.filter(({ image }) => image === record.id)
    if (!isOfRegistry(own)) continue
    const references = own.map(({ reference }) => reference)
    found.push({ record, references, usedAt: await store.lastUsedAt(record.id) })
  }
  return found.sort((a, b) => a.usedAt.getTime() - b.usedAt.getTime())
}
