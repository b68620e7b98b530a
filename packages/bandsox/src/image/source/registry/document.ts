/** Reads what a source calls a manifest: its digest, and which kind of document it is. No I/O. */
import { BandSoxError } from '@bandsox/sdk'
import * as z from 'zod'
import { sha256 } from '../../digest.js'
import { documentMediaTypes, refuseFirstSchema } from '../../manifest.js'
import type { Document } from '../source.js'
import { printable } from './printable.js'

const headSchema = z.object({ schemaVersion: z.unknown(), mediaType: z.string().optional() })

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
  refuseFirstSchema(head, said)
  const mediaType = head.mediaType ?? said ?? ''
  if (documentMediaTypes.includes(mediaType)) return { bytes, mediaType, digest }
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
