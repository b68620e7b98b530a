/** Manifests, indexes and configurations of images: OCI's and Docker's second. Untrusted bytes in, checked values out. No I/O. */
import { BandSoxError, type ImageConfig } from '@bandsox/sdk'
import * as z from 'zod'
import { type Descriptor, type Document, descriptorSchema, digestSchema } from './source/source.js'

export const mediaTypes = {
  ociIndex: 'application/vnd.oci.image.index.v1+json',
  ociManifest: 'application/vnd.oci.image.manifest.v1+json',
  ociConfig: 'application/vnd.oci.image.config.v1+json',
  ociLayer: 'application/vnd.oci.image.layer.v1.tar',
  dockerList: 'application/vnd.docker.distribution.manifest.list.v2+json',
  dockerManifest: 'application/vnd.docker.distribution.manifest.v2+json',
  dockerConfig: 'application/vnd.docker.container.image.v1+json',
} as const

/** Of what a reference may mean. See OCI image-spec, media-types.md, and distribution's spec/manifest-v2-2. */
export const documentMediaTypes: readonly string[] = [
  mediaTypes.ociIndex,
  mediaTypes.ociManifest,
  mediaTypes.dockerList,
  mediaTypes.dockerManifest,
]

const platformSchema = z.object({
  os: z.string().max(64),
  architecture: z.string().max(64),
  variant: z.string().max(64).optional(),
})
export type Platform = z.infer<typeof platformSchema>

const indexSchema = z.object({
  schemaVersion: z.literal(2),
  manifests: z
    .array(
      descriptorSchema.extend({
        platform: platformSchema.optional().catch(undefined),
        annotations: z.record(z.string(), z.string()).optional().catch(undefined),
      }),
    )
    .max(1000),
})
export type Index = z.infer<typeof indexSchema>

const manifestSchema = z.object({
  schemaVersion: z.literal(2),
  config: descriptorSchema,
  layers: z.array(descriptorSchema).max(10_000),
})
export type Manifest = z.infer<typeof manifestSchema>

/** Platforms in a message. */
const MAX_LISTED = 20
const MAX_TEXT = 128 * 1024
const text = z.string().max(MAX_TEXT)
/** Go writes an empty list as `null`. */
const list = z.array(text).max(10_000).nullish()
const members = z.record(text, z.unknown()).nullish()

/** As {@link parsePlatform} reads them. */
const configSchema = z.object({
  os: z.string().regex(/^[a-z0-9]{1,64}$/),
  architecture: z.string().regex(/^[a-z0-9_]{1,64}$/),
  variant: z
    .string()
    .regex(/^[a-z0-9.]{0,64}$/)
    .optional(),
  created: z.string().max(64).nullish(),
  rootfs: z.object({ type: z.literal('layers'), diff_ids: z.array(digestSchema).max(10_000).nullable() }),
  config: z
    .object({
      Env: list,
      User: text.nullish(),
      WorkingDir: text.nullish(),
      Entrypoint: list,
      Cmd: list,
      StopSignal: z.string().max(64).nullish(),
      Labels: z.record(text, text).nullish(),
      ExposedPorts: members,
    })
    .nullish(),
})

export interface Configuration {
  platform: string
  createdAt: string | undefined
  diffIds: string[]
  config: ImageConfig
}

/** @throws `image-invalid`. */
export function parseDocument(
  document: Document,
): { kind: 'index'; index: Index } | { kind: 'manifest'; manifest: Manifest } {
  const value = parseJson(document, 'the manifest')
  const some = z.unknown().optional()
  const shape = z.object({ manifests: some, config: some, layers: some }).safeParse(value)
  const hasBoth =
    shape.data?.manifests !== undefined && (shape.data.config !== undefined || shape.data.layers !== undefined)
  // One document must not mean two images to two readers. See CVE-2021-41190.
  if (hasBoth) throw invalid(document, 'the manifest is a manifest and an index at once')
  refuseFirstSchema(value)
  if (shape.data?.manifests !== undefined) {
    return { kind: 'index', index: checked(indexSchema, value, document, 'the index') }
  }
  return { kind: 'manifest', manifest: checked(manifestSchema, value, document, 'the manifest') }
}

/** @param mediaType What the source says it is, in lower case. @throws `image-invalid`. */
export function refuseFirstSchema(manifest: unknown, mediaType = ''): void {
  const isFirst =
    z.object({ schemaVersion: z.literal(1) }).safeParse(manifest).success ||
    mediaType.startsWith('application/vnd.docker.distribution.manifest.v1+')
  if (!isFirst) return
  throw new BandSoxError('image-invalid', 'the manifest is of the first schema, which Docker gave up in 2017', {
    hint: 'push it anew with a program of today',
  })
}

/** @throws `image-invalid`. */
export function parseConfiguration(document: Document): Configuration {
  const value = checked(configSchema, parseJson(document, 'the configuration'), document, 'the configuration')
  const { os, architecture, variant, created, rootfs, config } = value
  return {
    platform: platformText({ os, architecture, ...(variant !== undefined && { variant }) }),
    createdAt: created ?? undefined,
    diffIds: rootfs.diff_ids ?? [],
    config: {
      env: (config?.Env ?? []).filter((each) => each.indexOf('=') > 0 && !each.includes('\0')),
      user: config?.User ?? '',
      workingDir: config?.WorkingDir || '/',
      entrypoint: config?.Entrypoint ?? [],
      cmd: config?.Cmd ?? [],
      stopSignal: config?.StopSignal ?? '',
      labels: config?.Labels ?? {},
      exposedPorts: Object.keys(config?.ExposedPorts ?? {}),
    },
  }
}

/** `os/architecture[/variant]`. @throws `bad-request`. */
export function parsePlatform(text: string): Platform {
  const match = /^([a-z0-9]+)\/([a-z0-9_]+)(?:\/([a-z0-9.]+))?$/.exec(text)
  const [, os, architecture, variant] = match ?? []
  if (os === undefined || architecture === undefined) {
    throw new BandSoxError('bad-request', `there is no platform ${JSON.stringify(text)}: it is like linux/amd64`)
  }
  return { os, architecture, ...(variant !== undefined && { variant }) }
}

export const platformText = ({ os, architecture, variant }: Platform): string =>
  [os, architecture, variant].filter((part) => part !== undefined && part !== '').join('/')

/** A variant that was not asked for may be any. */
export const isPlatform = (found: Platform, wanted: Platform): boolean =>
  found.os === wanted.os &&
  found.architecture === wanted.architecture &&
  (wanted.variant === undefined || found.variant === wanted.variant)

/**
 * The manifest of an index for a platform.
 *
 * @throws `platform-not-found` with those that there are.
 */
export function choosePlatform(index: Index, wanted: Platform, reference: string): Descriptor {
  const [only] = index.manifests
  const found =
    index.manifests.find(({ platform }) => platform !== undefined && isPlatform(platform, wanted)) ??
    (index.manifests.length === 1 && only?.platform === undefined ? only : undefined)
  if (found !== undefined) return found
  // Attestations stand in an index as images of no platform.
  const known = index.manifests.flatMap(({ platform }) => (platform === undefined ? [] : [platformText(platform)]))
  const real = known.filter((platform) => platform !== 'unknown/unknown').slice(0, MAX_LISTED)
  throw new BandSoxError(
    'platform-not-found',
    `${reference} has no image for ${platformText(wanted)}${real.length === 0 ? '' : `, but for ${real.join(', ')}`}`,
  )
}

function parseJson(document: Document, what: string): unknown {
  try {
    return JSON.parse(document.bytes.toString('utf8'))
  } catch (error) {
    throw invalid(document, `${what} is no JSON`, error)
  }
}

function checked<S extends z.ZodType>(schema: S, value: unknown, document: Document, what: string): z.infer<S> {
  const result = schema.safeParse(value)
  if (result.success) return result.data
  const [issue] = result.error.issues
  const place = issue === undefined || issue.path.length === 0 ? '' : ` at ${issue.path.join('.')}`
  throw invalid(document, `${what} is not what it should be${place}: ${issue?.message ?? 'unknown'}`, result.error)
}

const invalid = (document: Document, message: string, cause?: unknown) =>
  new BandSoxError('image-invalid', `${message} (${document.digest})`, { cause })
