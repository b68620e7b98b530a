/** What is kept of an image on this host, as JSON: checked whenever it is read, since other versions may have written it. */
import * as z from 'zod'
import { recordedFileSchema } from '../artifact/recorded-file.js'
import { descriptorSchema, digestSchema } from './source/source.js'

/** See OCI image-spec, config.md. */
export const imageConfigSchema = z.object({
  env: z.array(z.string()),
  user: z.string(),
  workingDir: z.string(),
  entrypoint: z.array(z.string()),
  cmd: z.array(z.string()),
  stopSignal: z.string(),
  labels: z.record(z.string(), z.string()),
  exposedPorts: z.array(z.string()),
})

export const imageRecordSchema = z.object({
  version: z.literal(1),
  /** Digest of its configuration. */
  id: digestSchema,
  manifest: descriptorSchema,
  configuration: descriptorSchema,
  platform: z.string(),
  config: imageConfigSchema,
  /** The lowest first. */
  layers: z.array(descriptorSchema),
  diffIds: z.array(digestSchema),
  /** Names its disk; see `diskKey`. */
  disk: z.string().regex(/^[0-9a-f]{64}$/),
  createdAt: z.string().optional(),
  pulledAt: z.string(),
})
export type ImageRecord = z.infer<typeof imageRecordSchema>

export const referenceRecordSchema = z.object({
  version: z.literal(1),
  /** In its full form. */
  reference: z.string(),
  image: digestSchema,
  /** `local`: it came from a file or an engine on this host, and no registry need have it. */
  origin: z.enum(['registry', 'local']).default('registry'),
  /** Of the manifest or index that it meant when it was last asked: a tag that moves means another one then. */
  root: digestSchema,
})
export type ReferenceRecord = z.infer<typeof referenceRecordSchema>

export const diskRecordSchema = z.object({
  version: z.literal(1),
  /** A squashfs with the image in its folder `rootfs`. */
  rootfs: recordedFileSchema,
})
