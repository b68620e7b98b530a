/** Reads what a source calls a manifest: its digest, and which kind of document it is. No I/O. */
import { createHash } from 'node:crypto'
import { BandSoxError } from '@bandsox/sdk'
import * as z from 'zod'
import type { Document } from '../source.js'
import { printable } from './printable.js'

/** See OCI image-spec, media-types.md, and https://distribution.github.io/distribution/spec/manifest-v2-2/. */
export const DOCUMENT_MEDIA_TYPES = [
  'application/vnd.oci.image.index.v1+json',
  'application/vnd.oci.image.manifest.v1+json',
  'application/vnd.docker.distribution.manifest.list.v2+json',
  'application/vnd.docker.distribution.manifest.v2+json',
]

const headSchema = z.object({ schemaVersion: z.unknown(), mediaType: z.string().optional() })

const sha256 = (bytes: Buffer): string => `sha256:${createHash('sha256').update(bytes).digest('hex')}`

/**
 * @param contentType What the source says it is. Where the document says so itself that counts: the digest covers it.
 * @param expected The digest that was asked for.
 * @throws `digest-mismatch`; `image-invalid` for what is no manifest or index of schema 2.
 */
export function toDocument(bytes: Buffer, contentType: string | undefined, expected: string | undefined): Document {
  const digest = sha256(bytes)
  if (expected !== undefined && digest !== expected)
    throw new BandSoxError('digest-mismatch', `what came has the digest ${digest}`)
  const said = (contentType ?? '').split(';')[0]?.trim().toLowerCase()
  const head = parseHead(bytes)
  if (head.schemaVersion === 1 || said?.startsWith('application/vnd.docker.distribution.manifest.v1+'))
    throw new BandSoxError('image-invalid', 'it has the schema 1, which Docker gave up in 2017', {
      hint: 'push it anew with a program of today',
    })
  const mediaType = head.mediaType ?? said ?? ''
  if (DOCUMENT_MEDIA_TYPES.includes(mediaType)) return { bytes, mediaType, digest }
  throw new BandSoxError('image-invalid', `it is no manifest of an image, but ${JSON.stringify(printable(mediaType))}`)
}

function parseHead(bytes: Buffer): z.infer<typeof headSchema> {
  let json: unknown
  try {
    json = JSON.parse(bytes.toString('utf8'))
  } catch (error) {
    throw new BandSoxError('image-invalid', 'it is no JSON', { cause: error })
  }
  const parsed = headSchema.safeParse(json)
  if (parsed.success) return parsed.data
  throw new BandSoxError('image-invalid', 'it is no manifest of an image')
}
