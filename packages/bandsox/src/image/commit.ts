/** An image that is another one with one more layer, as a source to pull from. */
import { createReadStream } from 'node:fs'
import { Readable } from 'node:stream'
import { BandSoxError } from '@bandsox/sdk'
import * as z from 'zod'
import { sha256 } from './digest.js'
import type { ImageRecord } from './image-record.js'
import type { LayerFile } from './layer-file.js'
import { mediaTypes, parseConfiguration } from './manifest.js'
import type { Descriptor, Document, ImageSource } from './source/source.js'

/** undefined: as in the other one. */
export interface ImageChanges {
  message: string | undefined
  author: string | undefined
  env: Record<string, string>
  cmd: string[] | undefined
  entrypoint: string[] | undefined
  user: string | undefined
  workingDir: string | undefined
}

export interface Commit {
  base: ImageRecord
  /** The other image's, as it was published. */
  configuration: Buffer
  layer: LayerFile
  changes: ImageChanges
  createdAt: string
}

const CREATED_BY = 'bandsox image commit'
/** Docker's types of layers, and OCI's for the same bytes: a manifest of OCI's kind names no others. */
const ociTypes: Record<string, string> = {
  'application/vnd.docker.image.rootfs.diff.tar': mediaTypes.ociLayer,
  'application/vnd.docker.image.rootfs.diff.tar.gzip': `${mediaTypes.ociLayer}+gzip`,
  'application/vnd.docker.image.rootfs.diff.tar.zstd': `${mediaTypes.ociLayer}+zstd`,
  'application/vnd.docker.image.rootfs.foreign.diff.tar.gzip':
    'application/vnd.oci.image.layer.nondistributable.v1.tar+gzip',
}

const member = z.record(z.string(), z.unknown())
const historySchema = z.array(z.looseObject({ empty_layer: z.boolean().optional() }))
const configurationSchema = z.looseObject({
  config: member.nullish(),
  history: z.unknown().optional(),
})

/** Its other layers are in the store already. */
export function commitSource(commit: Commit): ImageSource {
  const { base, layer } = commit
  const configuration = configurationOf(commit)
  const manifest = json({
    schemaVersion: 2,
    mediaType: mediaTypes.ociManifest,
    config: { mediaType: mediaTypes.ociConfig, digest: sha256(configuration), size: configuration.length },
    layers: [...base.layers.map(ofOci), layer.descriptor],
  })
  const document: Document = { bytes: manifest, mediaType: mediaTypes.ociManifest, digest: sha256(manifest) }
  return {
    root: async () => document,
    manifest: async ({ digest }) => {
      throw new BandSoxError('image-not-found', `a commit has no manifest ${digest}`)
    },
    async openBlob({ digest }, offset) {
      if (digest === sha256(configuration))
        return { stream: Readable.from([configuration.subarray(offset)], { objectMode: false }), startsAt: offset }
      if (digest === layer.descriptor.digest)
        return { stream: createReadStream(layer.file, { start: offset }), startsAt: offset }
      throw new BandSoxError('artifact-damaged', `the layer ${digest} of ${base.id} was removed just now`, {
        hint: 'try again',
      })
    },
    close: async () => undefined,
  }
}

const ofOci = ({ mediaType, ...rest }: Descriptor): Descriptor => ({
  ...rest,
  mediaType: ociTypes[mediaType] ?? mediaType,
})

/**
 * What nobody here knows of stays as it is, but for what Docker notes of the container that an image was built in.
 *
 * @throws `image-invalid`, `artifact-damaged`.
 */
function configurationOf({ base, configuration: bytes, layer, changes, createdAt }: Commit): Buffer {
  const document = { bytes, mediaType: base.configuration.mediaType, digest: base.configuration.digest }
  const { diffIds } = parseConfiguration(document) // refuses what is none
  const parsed = configurationSchema.safeParse(JSON.parse(bytes.toString('utf8')))
  if (!parsed.success)
    throw new BandSoxError('artifact-damaged', `the configuration of ${base.id} is none: ${parsed.error.message}`, {
      cause: parsed.error,
    })
  const { container: _, container_config: __, parent: ___, config, ...rest } = parsed.data
  const { author, message } = changes
  const entry = {
    created: createdAt,
    created_by: CREATED_BY,
    ...(author !== undefined && { author }),
    ...(message !== undefined && { comment: message }),
  }
  return json({
    ...rest,
    created: createdAt,
    ...(author !== undefined && { author }),
    config: { ...config, ...changedConfig(config ?? {}, changes) },
    rootfs: { type: 'layers', diff_ids: [...diffIds, layer.diffId] },
    history: [...historyOf(parsed.data.history, diffIds.length), entry],
  })
}

function changedConfig(config: Record<string, unknown>, changes: ImageChanges): Record<string, unknown> {
  const { env, cmd, entrypoint, user, workingDir } = changes
  return {
    ...(Object.keys(env).length > 0 && { Env: changedEnv(config['Env'], env) }),
    ...(cmd !== undefined && { Cmd: cmd }),
    ...(entrypoint !== undefined && { Entrypoint: entrypoint }),
    ...(user !== undefined && { User: user }),
    ...(workingDir !== undefined && { WorkingDir: workingDir }),
  }
}

/** A variable that is there keeps its place. */
function changedEnv(before: unknown, env: Record<string, string>): string[] {
  const entries = z.array(z.string()).catch([]).parse(before)
  const left = new Map(Object.entries(env))
  const kept = entries.map((entry) => {
    const name = entry.split('=', 1)[0] ?? ''
    const value = left.get(name)
    left.delete(name)
    return value === undefined ? entry : `${name}=${value}`
  })
  return [...kept, ...[...left].map(([name, value]) => `${name}=${value}`)]
}

/** Programs that read a history expect an entry for each layer: one that is missing or wrong is made up. */
function historyOf(history: unknown, layers: number): unknown[] {
  const entries = historySchema.safeParse(history ?? [])
  const isRight = entries.success && entries.data.filter(({ empty_layer }) => empty_layer !== true).length === layers
  return isRight ? entries.data : Array.from({ length: layers }, () => ({ created_by: 'unknown' }))
}

const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
