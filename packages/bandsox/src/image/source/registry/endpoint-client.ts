/** Requests to one server of the registry protocol: finds the scheme that connects, logs in when asked to, follows redirects. */
import { BandSoxError } from '@bandsox/sdk'
import { createAuthorizer } from './authorizer.js'
import { parseChallenges } from './challenge.js'
import type { CredentialSearch } from './credentials.js'
import { type HttpLimits, openHttpClient } from './http.js'
import type { ProxySettings } from './proxy.js'
import type { Endpoint } from './registry-config.js'
import { discard, type HttpReply } from './reply.js'
import { replyError } from './reply-error.js'

export interface EndpointRequest {
  method?: 'GET' | 'HEAD'
  /** After the host: `/v2/library/alpine/manifests/latest`. */
  path: string
  headers?: Record<string, string>
  /** Statuses that are no error. */
  accept: readonly number[]
  signal?: AbortSignal | undefined
}

export interface EndpointClient {
  readonly endpoint: Endpoint
  /**
   * @returns A reply with one of the accepted statuses, and the signal that its body ends by.
   * @throws `registry-unreachable`, `registry-unauthorized`, `image-not-found`, `registry-failed`, `permission-denied`, or
   *   `signal.reason`.
   */
  request(request: EndpointRequest): Promise<{ reply: HttpReply; signal: AbortSignal }>
  /** Breaks off what is under way: it rejects with `cancelled`. */
  close(): Promise<void>
}

export interface EndpointClientOptions {
  endpoint: Endpoint
  search: (signal: AbortSignal) => Promise<CredentialSearch>
  proxy: ProxySettings
  limits: HttpLimits
  allowLoopback: boolean
  debug: (message: string) => void
}

/** @throws `bad-request` when the endpoint's file of certificates cannot be read. */
export async function openEndpoint(options: EndpointClientOptions): Promise<EndpointClient> {
  const { endpoint, search, proxy, limits, debug, allowLoopback } = options
  const http = await openHttpClient({
    host: endpoint.host,
    verifyTls: endpoint.verifyTls,
    ca: endpoint.ca,
    allowDowngrade: endpoint.schemes.includes('http'),
    allowLoopback,
    proxy,
    limits,
    debug,
  })
  const closing = new AbortController()
  const authorizer = createAuthorizer({ endpoint, http, search, closed: closing.signal, debug })
  const sendFirst = schemeFinder(endpoint, debug)

  return {
    endpoint,
    async request({ method = 'GET', path, headers = {}, accept, signal: given }) {
      const signal = given === undefined ? closing.signal : AbortSignal.any([given, closing.signal])
      const send = (authorization: string | undefined) =>
        sendFirst((base, tries) =>
          http.sendFollowing({
            method,
            url: new URL(path, base),
            headers: { ...headers, ...(authorization !== undefined && { authorization }) },
            ...(tries !== undefined && { tries }),
            signal,
          }),
        )
      const sent = authorizer.current()
      let reply = await send(sent)
      // Only the registry itself is logged in to, and not where it sends us for the bytes.
      if (reply.status === 401 && isAt(endpoint, reply.url)) {
        const refusal = reply
        const challenges = parseChallenges(refusal.headers['www-authenticate'])
        const authorization = await orDiscard(refusal, () => authorizer.answer(challenges, sent, signal))
        if (authorization !== undefined) {
          await discard(refusal)
          reply = await send(authorization)
        }
      }
      if (accept.includes(reply.status)) return { reply, signal }
      const asked = authorizer.asked()
      throw await replyError(reply, asked === undefined ? {} : { asked }, signal)
    },
    async close() {
      closing.abort(new BandSoxError('cancelled', `the connection to ${endpoint.host} was closed`))
      await http.close()
    },
  }
}

type Send = (base: string, tries?: number) => Promise<HttpReply>

/** Remembers the first scheme that connects; what the server then answers does not matter. */
function schemeFinder(endpoint: Endpoint, debug: (message: string) => void) {
  let known = endpoint.schemes.length === 1 ? endpoint.schemes[0] : undefined
  return async (send: Send): Promise<HttpReply> => {
    if (known !== undefined) return send(`${known}://${endpoint.host}`)
    for (const scheme of endpoint.schemes.slice(0, -1)) {
      try {
        const reply = await send(`${scheme}://${endpoint.host}`, 1)
        known = scheme
        return reply
      } catch (error) {
        if (!(error instanceof BandSoxError) || error.code !== 'registry-unreachable') throw error
        debug(`${error.message}: trying without TLS`)
      }
    }
    const last = endpoint.schemes.at(-1)
    const reply = await send(`${last}://${endpoint.host}`)
    known = last
    return reply
  }
}

/** Through a URL, which leaves out the port that its scheme has anyway. */
const isAt = (endpoint: Endpoint, { protocol, host }: URL): boolean =>
  new URL(`${protocol}//${endpoint.host}`).host === host

async function orDiscard<T>(reply: HttpReply, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    await discard(reply)
    throw error
  }
}
