/** What is told of images: their records, with what the store and the sandboxes say of them now. */
import { type ImageInfo, isSystemError } from '@bandsox/sdk'
import type { ImageRecord } from '../image/image-record.js'
import type { ImageStore } from '../image/image-store.js'

/** @param users Ids of sandboxes, by the id of their image. @returns One for each record, without those removed meanwhile. */
export async function imageInfos(
  store: ImageStore,
  records: readonly ImageRecord[],
  users: ReadonlyMap<string, string[]>,
): Promise<ImageInfo[]> {
  const references = await store.references()
  const infos: ImageInfo[] = []
  for (const record of records) {
    const lastUsedAt = await store.lastUsedAt(record.id).catch((error: unknown) => {
      if (isSystemError(error, 'ENOENT')) return undefined
      throw error
    })
    if (lastUsedAt === undefined) continue
    const kept = await Promise.all(record.layers.map(({ digest }) => store.blobs.sizeOf(digest)))
    infos.push({
      id: record.id,
      references: references.filter(({ image }) => image === record.id).map(({ reference }) => reference),
      digest: record.manifest.digest,
      platform: record.platform,
      config: record.config,
      layers: record.layers.map(({ digest, size }) => ({ digest, sizeBytes: size })),
      diskBytes: (await store.findDisk(record.disk))?.sizeBytes ?? 0,
      layerBytes: kept.reduce<number>((sum, size) => sum + (size ?? 0), 0),
      createdAt: record.createdAt,
      pulledAt: record.pulledAt,
      lastUsedAt: lastUsedAt.toISOString(),
      usedBy: users.get(record.id) ?? [],
    })
  }
  return infos
}
