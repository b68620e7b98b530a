/**
 * An image at one server of the registry protocol, as a source.
 *
 * @see OCI distribution-spec, "Pull"
 */
import { BandSoxError } from '@bandsox/sdk'
import { documentMediaTypes } from '../../manifest.js'
import { formatReference, type RegistryReference } from '../reference.js'
import { type Descriptor, digestSchema, MAX_DOCUMENT_BYTES, type OpenBlob } from '../source.js'
import { attempting } from './attempting.js'
import { blobStream } from './blob-stream.js'
import { toDocument } from './document.js'
import type { EndpointClient } from './endpoint-client.js'
import type { RegistrySource } from './registry-source.js'
import { discard, type HttpReply, headerOf, readBody } from './reply.js'

/** See RFC 9110, 14.4. Fifteen digits are a safe integer, and more than any image has. */
const CONTENT_RANGE = /^bytes (\d{1,15})-\d{1,15}\/(?:\d{1,15}|\*)$/

/** What its methods throw: see `openRegistry`. */
export function endpointSource(client: EndpointClient, reference: RegistryReference): RegistrySource {
  const image = formatReference(reference)
  const base = `/v2/${client.endpoint.repository}`
  const path = `${base}/manifests/${reference.digest ?? reference.tag}`
  const headers = { accept: documentMediaTypes.join(', ') }

  const fetchDocument = async (from: string, expected: string | undefined, signal?: AbortSignal) => {
    const { reply, signal: ending } = await client.request({ path: from, headers, accept: [200], signal })
    const tooLarge = () => new BandSoxError('image-invalid', `it has more than ${MAX_DOCUMENT_BYTES} bytes`)
    const bytes = await readBody(reply, MAX_DOCUMENT_BYTES, ending, tooLarge)
    return toDocument(bytes, headerOf(reply, 'content-type'), expected)
  }

  return {
    root: (signal) =>
      attempting(`cannot get the manifest of ${image}`, () => fetchDocument(path, reference.digest, signal)),

    manifest: ({ digest }, signal) =>
      attempting(`cannot get the manifest ${digest} of ${image}`, () =>
        fetchDocument(`${base}/manifests/${digest}`, digest, signal),
      ),

    digest: (signal) =>
      attempting(`cannot find out what ${image} means`, async () => {
        if (reference.digest !== undefined) return reference.digest
        const { reply } = await client.request({ method: 'HEAD', path, headers, accept: [200, 404, 405], signal })
        await discard(reply)
        const told = digestSchema.safeParse(headerOf(reply, 'docker-content-digest'))
        if (reply.status === 200 && told.success) return told.data
        // Some registries do not answer HEAD, or do not tell the digest.
        return (await fetchDocument(path, undefined, signal)).digest
      }),

    openBlob: (descriptor, offset, signal) =>
      attempting(`cannot get the blob ${descriptor.digest} of ${image}`, async () => {
        const blob = `${base}/blobs/${descriptor.digest}`
        if (offset > 0) {
          const range = { range: `bytes=${offset}-` }
          const { reply, signal: ending } = await client.request({
            path: blob,
            headers: range,
            accept: [200, 206, 416],
            signal,
          })
          const startsAt = startOf(reply)
          if (startsAt === offset || startsAt === 0) return openedAt(reply, descriptor, startsAt, ending)
          await discard(reply) // the server does not know that part
        }
        const { reply, signal: ending } = await client.request({ path: blob, accept: [200], signal })
        return openedAt(reply, descriptor, 0, ending)
      }),

    close: () => client.close(),
  }
}

/** @returns The offset of the first byte in the body; undefined when there is none of the blob in it, or nobody knows where. */
function startOf(reply: HttpReply): number | undefined {
  if (reply.status === 200) return 0
  const start = reply.status === 206 ? CONTENT_RANGE.exec(headerOf(reply, 'content-range') ?? '')?.[1] : undefined
  return start === undefined ? undefined : Number(start)
}

function openedAt(reply: HttpReply, { digest, size }: Descriptor, startsAt: number, signal: AbortSignal): OpenBlob {
  return { stream: blobStream(reply, `the blob ${digest}`, size - startsAt, signal), startsAt }
}
