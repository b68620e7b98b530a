/** What a server answers: its headers, and a body that is read within a bound or thrown away. */
import type { Readable } from 'node:stream'
import type { BandSoxError } from '@bandsox/sdk'
import type { Dispatcher } from 'undici'
import { brokenBody } from './transport-error.js'

/** Of a body nobody wants: reading it to the end keeps the connection for the next request. */
const MAX_DISCARDED_BYTES = 64 * 1024

export interface HttpReply {
  /** Of the server that answered: another one than was asked, after a redirect. */
  url: URL
  status: number
  headers: Record<string, string | string[] | undefined>
  /** To be read or discarded; an abort of the request's signal destroys it. */
  body: Dispatcher.ResponseData['body']
}

/** Reads a body to its end and throws it away, or ends the connection where that would take long. */
export async function discard(reply: HttpReply): Promise<void> {
  await reply.body.dump({ limit: MAX_DISCARDED_BYTES })
}

/**
 * Reads a body into memory.
 *
 * @param onExcess The error of a body with more than `maxBytes`. None: what is beyond is left out.
 * @throws `registry-failed` when it breaks off; `signal.reason`.
 */
export async function readBody(
  reply: HttpReply,
  maxBytes: number,
  signal: AbortSignal,
  onExcess?: () => BandSoxError,
): Promise<Buffer> {
  const chunks: Buffer[] = []
  let size = 0
  try {
    for await (const chunk of reply.body as Readable) {
      chunks.push(chunk as Buffer)
      size += (chunk as Buffer).length
      if (size > maxBytes) break
    }
  } catch (error) {
    signal.throwIfAborted()
    throw brokenBody(reply.url.host, size, error)
  }
  if (size > maxBytes && onExcess !== undefined) throw onExcess()
  return Buffer.concat(chunks, Math.min(size, maxBytes))
}

/** The only value of a header, or the first one. */
export function headerOf(reply: HttpReply, name: string): string | undefined {
  return [reply.headers[name]].flat()[0]
}
