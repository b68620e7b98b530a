/** Turns a server's refusal into an error of ours, with what the server says about it. */
import { STATUS_CODES } from 'node:http'
import { BandSoxError, type ErrorCode } from '@bandsox/sdk'
import * as z from 'zod'
import { printable } from './printable.js'
import { type HttpReply, headerOf, readBody } from './reply.js'

const MAX_ERROR_BYTES = 64 * 1024

/** Of a registry: OCI distribution-spec, "Error Codes"; and of a token server: RFC 6749, 5.2. */
const errorSchema = z.union([
  z.object({ errors: z.array(z.object({ code: z.string().optional(), message: z.string().optional() })).min(1) }),
  z.object({ error: z.string(), error_description: z.string().optional() }),
  z.object({ details: z.string() }),
])

export interface Refusal {
  /** Of a 404; another code where that does not mean that the image is missing. */
  notFound?: ErrorCode
  /** Said of a 401 and 403: with which credentials it was asked. */
  asked?: string
}

/**
 * @returns `registry-unauthorized` for 401 and 403, `image-not-found` for 404, otherwise `registry-failed`.
 * @throws `signal.reason`.
 */
export async function replyError(reply: HttpReply, refusal: Refusal, signal: AbortSignal): Promise<BandSoxError> {
  const { status, url } = reply
  const said = await saidBy(reply, signal)
  const parts = [`${url.host} answers ${status} ${STATUS_CODES[status] ?? ''}`.trimEnd()]
  if (said !== '') parts.push(`"${said}"`)
  // A longer wait than the client's own.
  const wait = status === 429 ? (headerOf(reply, 'retry-after') ?? '') : ''
  if (/^\d{1,9}$/.test(wait)) parts.push(`it asks to wait ${wait} s`)
  if (status === 401 || status === 403) {
    if (refusal.asked !== undefined) parts.push(refusal.asked)
    return new BandSoxError('registry-unauthorized', parts.join('; '))
  }
  return new BandSoxError(
    status === 404 ? (refusal.notFound ?? 'image-not-found') : 'registry-failed',
    parts.join('; '),
  )
}

async function saidBy(reply: HttpReply, signal: AbortSignal): Promise<string> {
  let text: string
  try {
    text = (await readBody(reply, MAX_ERROR_BYTES, signal)).toString('utf8')
  } catch (error) {
    // The status tells more than the broken explanation of it.
    if (error instanceof BandSoxError && error.code === 'registry-failed') return ''
    throw error
  }
  const isHtml = /html/i.test(headerOf(reply, 'content-type') ?? '')
  return printable(messageIn(text) ?? (isHtml ? '' : text))
}

function messageIn(text: string): string | undefined {
  let json: unknown
  try {
    json = JSON.parse(text)
  } catch {
    return undefined // plain text, of a proxy for example
  }
  const parsed = errorSchema.safeParse(json)
  if (!parsed.success) return undefined
  if ('details' in parsed.data) return parsed.data.details
  if ('error' in parsed.data) return parsed.data.error_description ?? parsed.data.error
  return parsed.data.errors.map(({ code, message }) => message || code || '').join(', ')
}
