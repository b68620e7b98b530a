/** An image on disk: a read-only file system and the configuration that it was published with, in one folder. */
import { basename, join } from 'node:path'
import { BandSoxError } from '@bandsox/sdk'
import * as z from 'zod'
import { checkFile, recordedFileSchema, verifyFile } from '../artifact/recorded-file.js'
import { readJsonFile } from '../process/json-file.js'

export const IMAGE_MANIFEST = 'image.json'

/** What an OCI image configuration says about running its command. See OCI image-spec, config.md. */
export const imageConfigSchema = z.object({
  /** `NAME=value` each. */
  env: z.array(z.string()),
  /** `name`, `uid`, `name:group` or `uid:gid`; empty: root. */
  user: z.string(),
  workingDir: z.string(),
  entrypoint: z.array(z.string()),
  cmd: z.array(z.string()),
  /** Empty: SIGTERM. */
  stopSignal: z.string(),
  labels: z.record(z.string(), z.string()),
})

export const imageManifestSchema = z.object({
  version: z.literal(1),
  name: z.string(),
  /** The reference that it was made for, such as `bandsox/base`. */
  reference: z.string(),
  /** `sha256:` and the digest that names its content. */
  digest: z.string().regex(/^sha256:[0-9a-f]{64}$/),
  config: imageConfigSchema,
  /** A squashfs. */
  rootfs: recordedFileSchema,
})

export type ImageConfig = z.infer<typeof imageConfigSchema>
export type ImageManifest = z.infer<typeof imageManifestSchema>

export interface Image extends Omit<ImageManifest, 'version'> {
  directory: string
  rootfs: ImageManifest['rootfs'] & { path: string }
}

/**
 * Loads an image after a quick check of its file's size and time.
 *
 * @throws `image-not-found` when the folder holds none, `artifact-damaged` naming the file.
 */
export async function loadImage(directory: string): Promise<Image> {
  const manifest = await readJsonFile(join(directory, IMAGE_MANIFEST), imageManifestSchema)
  if (manifest === undefined) {
    const hint = 'make the built-in image: npm run setup'
    throw new BandSoxError('image-not-found', `there is no image ${basename(directory)}: ${directory} holds none`, {
      hint,
    })
  }
  await checkFile(directory, manifest.rootfs)
  const { version: _, ...image } = manifest
  return { ...image, directory, rootfs: { ...manifest.rootfs, path: join(directory, manifest.rootfs.file) } }
}

/**
 * Compares the image's file system with its digest.
 *
 * @throws `artifact-damaged` naming the file.
 */
export async function verifyImage(image: Image): Promise<void> {
  await verifyFile(image.directory, image.rootfs)
}
