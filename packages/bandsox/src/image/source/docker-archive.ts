/**
 * What `docker save` and `podman save` write: a tar with `manifest.json`, a configuration and a tar for each layer. It has no
 * manifest with digests; one is made here, from what is found. See moby, image/spec/v1.2.md.
 */
import { createHash } from 'node:crypto'
import { BandSoxError } from '@bandsox/sdk'
import * as z from 'zod'
import { sha256 } from '../digest.js'
import type { ImageLimits } from '../layer/limits.js'
import { mediaTypes } from '../manifest.js'
import { type ImageFiles, readDocumentFile, type TarFiles } from './files.js'
import { isName, listNames } from './names.js'
import type { Descriptor, Document, ImageSource } from './source.js'

const MANIFEST = 'manifest.json'
const path = z
  .string()
  .max(4096)
  .regex(/^[^\p{Cc}\p{Cf}]+$/u)

const manifestSchema = z
  .array(
    z.object({
      Config: path,
      RepoTags: z.array(z.string().refine(isName)).max(1000).nullish(),
      Layers: z.array(path).max(10_000).nullable(),
    }),
  )
  .min(1)
  .max(1000)

/** A manifest.json that says something else may be anybody's. */
export async function isDockerArchive(files: ImageFiles): Promise<boolean> {
  if ((await files.sizeOf(MANIFEST)) === undefined) return false
  try {
    await readManifest(files)
    return true
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'image-invalid') return false
    throw error
  }
}

export interface DockerArchiveOptions {
  limits: ImageLimits
  /** Told what takes time. */
  onActivity?: ((what: string) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * @param name Which image, when there are several.
 * @throws `image-invalid`, `image-too-large` for too many layers, `image-not-found` with the names that there are, `signal.reason`.
 */
export async function openDockerArchive(
  files: TarFiles,
  name: string | undefined,
  { limits, onActivity, signal }: DockerArchiveOptions,
): Promise<ImageSource & { names: string[] }> {
  const chosen = choose(await readManifest(files), name, files.name)
  const blobs = new Map<string, string>()
  const config = await readDocumentFile(files, chosen.Config)
  blobs.set(sha256(config), chosen.Config)
  const paths = chosen.Layers ?? []
  if (paths.length > limits.maxLayers) {
    const counts = `${paths.length} layers, over ${limits.maxLayers}`
    throw new BandSoxError('image-too-large', `${files.name} has ${counts} (images.limits.maxLayers)`)
  }
  onActivity?.(`hashing the layers of ${files.name}`)
  const layers: Descriptor[] = []
  const described = new Map<string, Descriptor>() // a layer may come many times, by many links, and is read once
  for (const written of paths) {
    const layer = files.resolve(written)
    if (layer === undefined) {
      throw new BandSoxError('image-invalid', `${files.name} holds no ${JSON.stringify(written)}`)
    }
    const descriptor = described.get(layer) ?? (await describe(files, layer, signal))
    described.set(layer, descriptor)
    blobs.set(descriptor.digest, layer)
    layers.push(descriptor)
  }
  const manifest = Buffer.from(
    JSON.stringify({
      schemaVersion: 2,
      mediaType: mediaTypes.ociManifest,
      config: { mediaType: mediaTypes.ociConfig, digest: sha256(config), size: config.length },
      layers,
    }),
  )
  const document: Document = { bytes: manifest, mediaType: mediaTypes.ociManifest, digest: sha256(manifest) }
  return {
    names: chosen.RepoTags ?? [],
    root: async () => document,
    manifest: async ({ digest }) => {
      throw new BandSoxError('image-not-found', `${files.name} holds no manifest ${digest}`)
    },
    async openBlob({ digest }, offset) {
      const found = blobs.get(digest)
      if (found === undefined) throw new BandSoxError('image-invalid', `${files.name} holds no ${digest}`)
      return { stream: files.open(found, offset), startsAt: offset }
    },
    close: () => files.close(),
  }
}

type ArchivedImage = z.infer<typeof manifestSchema>[number]

async function readManifest(files: ImageFiles): Promise<ArchivedImage[]> {
  const bytes = await readDocumentFile(files, MANIFEST)
  try {
    return manifestSchema.parse(JSON.parse(bytes.toString('utf8')))
  } catch (error) {
    throw new BandSoxError('image-invalid', `${MANIFEST} in ${files.name} is not what it should be`, { cause: error })
  }
}

function choose(images: ArchivedImage[], name: string | undefined, archive: string): ArchivedImage {
  const [only, second] = images
  const names = images.flatMap(({ RepoTags }) => RepoTags ?? [])
  const found =
    name === undefined
      ? second === undefined && only
      : images.find(({ RepoTags }) => RepoTags?.some((tag) => tag === name || tag === `${name}:latest`))
  if (found) return found
  const which = name === undefined ? `${images.length} images` : `no image ${JSON.stringify(name)}`
  throw new BandSoxError('image-not-found', `${archive} holds ${which}: ${listNames(names) || 'none has a name'}`, {
    hint: 'name one of them, behind a colon',
  })
}

async function describe(files: ImageFiles, layer: string, signal?: AbortSignal): Promise<Descriptor> {
  let size = 0
  const hash = createHash('sha256')
  for await (const piece of files.open(layer, 0)) {
    signal?.throwIfAborted()
    hash.update(piece as Buffer)
    size += (piece as Buffer).length
  }
  return { mediaType: mediaTypes.ociLayer, digest: `sha256:${hash.digest('hex')}`, size }
}
