/** An image of one layer that has no manifest of its own: it is written here. */
import { Readable } from 'node:stream'
import { BandSoxError } from '@bandsox/sdk'
import { sha256 } from '../digest.js'
import { mediaTypes, type Platform } from '../manifest.js'
import type { Document, ImageSource } from './source.js'

/** Of commands in an image that does not say otherwise, as Docker has it. */
export const DEFAULT_PATH = 'PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'

export interface SingleLayer {
  /** For messages. */
  name: string
  platform: Platform
  /** See OCI image-spec, config.md, "config". */
  config: Record<string, unknown>
  layer: { digest: string; diffId: string; size: number }
  /** The layer's bytes from an offset on. */
  open: (offset: number) => AsyncIterable<Buffer>
}

export function singleLayerSource({ name, platform, config, layer, open }: SingleLayer): ImageSource {
  const configuration = json({ ...platform, config, rootfs: { type: 'layers', diff_ids: [layer.diffId] } })
  const manifest = json({
    schemaVersion: 2,
    mediaType: mediaTypes.ociManifest,
    config: { mediaType: mediaTypes.ociConfig, digest: sha256(configuration), size: configuration.length },
    layers: [{ mediaType: mediaTypes.ociLayer, digest: layer.digest, size: layer.size }],
  })
  const document: Document = { bytes: manifest, mediaType: mediaTypes.ociManifest, digest: sha256(manifest) }
  return {
    root: async () => document,
    manifest: async ({ digest }) => {
      throw new BandSoxError('image-not-found', `${name} holds no manifest ${digest}`)
    },
    async openBlob({ digest }, offset) {
      const isConfiguration = digest === sha256(configuration)
      const bytes = isConfiguration ? [configuration.subarray(offset)] : open(offset)
      return { stream: Readable.from(bytes, { objectMode: false }), startsAt: offset }
    },
    close: async () => undefined,
  }
}

const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
