/** Where an image comes from: its manifest, and any blob by descriptor from any offset. Each kind of source is a file beside this one. */
import type { Readable } from 'node:stream'
import * as z from 'zod'

export const digestSchema = z.string().regex(/^sha256:[0-9a-f]{64}$/)

/** See OCI image-spec, descriptor.md. Unknown fields are left out. */
export const descriptorSchema = z.object({
  mediaType: z.string().max(255),
  digest: digestSchema,
  size: z.int().nonnegative(),
})

export type Descriptor = z.infer<typeof descriptorSchema>

/** Bytes that a manifest, an index or a configuration may have; registries refuse larger ones than 4 MiB themselves. */
export const MAX_DOCUMENT_BYTES = 4 * 1024 * 1024

export interface Document {
  bytes: Buffer
  mediaType: string
  /** Of `bytes`, computed here, not told by the source. */
  digest: string
}

export interface OpenBlob {
  stream: Readable
  /** Where in the blob the stream begins: the offset asked for, or 0 from a source that can only begin at the beginning. */
  startsAt: number
}

/** What it delivers is not trusted: who reads a blob checks its size and digest. */
export interface ImageSource {
  /** The manifest or index that the reference means now, at most {@link MAX_DOCUMENT_BYTES}. */
  root(signal?: AbortSignal): Promise<Document>
  /** What `root` would have as its digest, where that can be asked for less; not verified. */
  digest?(signal?: AbortSignal): Promise<string>
  /** A manifest that an index names. Its digest was checked. */
  manifest(descriptor: Descriptor, signal?: AbortSignal): Promise<Document>
  /** @param offset Bytes that are there already, below `descriptor.size`. */
  openBlob(descriptor: Descriptor, offset: number, signal?: AbortSignal): Promise<OpenBlob>
  /**
   * Says that what came of a blob is not what its digest says. Only a source of several places has it, and does not ask those
   * again that the bytes came from.
   *
   * @returns Whether another place is left that may have the right bytes.
   */
  reject?(descriptor: Descriptor): boolean
  close(): Promise<void>
}
