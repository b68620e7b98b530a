/** HTTP to one registry and to where it redirects: bounded in time, and tried again where that helps. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import type { Dispatcher } from 'undici'
import { pause } from '../../../process/pause.js'
import { openDispatcher, readCertificates, type TlsSettings } from './dispatcher.js'
import { type ProxySettings, proxyFor } from './proxy.js'
import { checkPublic } from './public-address.js'
import { discard, type HttpReply, headerOf } from './reply.js'
import { isPassing, transportError } from './transport-error.js'
import { unlessAborted } from './unless-aborted.js'

/** All in milliseconds. */
export interface HttpLimits {
  /** For TCP and TLS together. */
  connectMs: number
  /** From the request to the end of the reply's headers. */
  headersMs: number
  /** Between two pieces of a body, while somebody reads it. */
  bodyIdleMs: number
  /** Before the second try; twice as long before the third. */
  backoffMs: number
}

export const DEFAULT_HTTP_LIMITS: HttpLimits = {
  connectMs: 15_000,
  headersMs: 30_000,
  bodyIdleMs: 30_000,
  backoffMs: 500,
}

/** With the first. */
const TRIES = 3
/** A server that asks for a longer pause is not waited for: the user decides. */
const MAX_RETRY_AFTER_MS = 20_000
/** Registries need one or two, to their storage. */
const MAX_REDIRECTS = 5

export interface HttpRequest {
  method: 'GET' | 'HEAD' | 'POST'
  url: URL
  headers: Record<string, string>
  body?: string
  /** Default 3. */
  tries?: number
  signal: AbortSignal
}

export interface HttpClient {
  /**
   * Sends a request, up to three times: after a lost connection, 429 and 5xx.
   *
   * @returns Whatever the server answers, also when that is a redirect or an error.
   * @throws `registry-unreachable`; `registry-failed` for what is no reply, or comes too late; `bad-request` for a proxy without
   *   an address; `permission-denied` for a host that must not be asked; `signal.reason`.
   */
  send(request: HttpRequest): Promise<HttpReply>
  /**
   * Sends a GET or HEAD, and follows up to 5 redirects. Another origin does not get the header Authorization.
   *
   * @throws `registry-failed` when they do not end, or lead from HTTPS to HTTP; and the codes of {@link HttpClient.send}.
   */
  sendFollowing(request: HttpRequest): Promise<HttpReply>
  /** Breaks off what is under way. */
  close(): Promise<void>
}

export interface HttpOptions {
  /** The server's name: what it redirects to, and where it has tokens fetched, may be other servers. */
  host: string
  /** False: the certificates of this one name are not verified. */
  verifyTls: boolean
  /** PEM file with certificates to trust besides the usual ones. */
  ca: string | undefined
  /** Whether a redirect may lead from HTTPS to HTTP. */
  allowDowngrade: boolean
  /** Whether the server, and what it leads to, may be on this host or in a private network. */
  allowLoopback: boolean
  proxy: ProxySettings
  limits: HttpLimits
  debug: (message: string) => void
}

/** @throws `bad-request` when the file of certificates cannot be read. */
export async function openHttpClient(options: HttpOptions): Promise<HttpClient> {
  const dispatchers = new Map<string, Dispatcher>()
  const { hostname } = new URL(`https://${options.host}`)
  const tls: Omit<TlsSettings, 'rejectUnauthorized'> = {
    timeout: options.limits.connectMs,
    publicOnly: !options.allowLoopback,
    ...(options.ca !== undefined && { ca: await readCertificates(options.ca) }),
  }
  const dispatcherFor = (url: URL): Dispatcher => {
    const proxy = proxyFor(url, options.proxy)
    const rejectUnauthorized = options.verifyTls || url.hostname !== hostname
    const key = `${rejectUnauthorized} ${proxy ?? ''}`
    const existing = dispatchers.get(key)
    if (existing !== undefined) return existing
    const dispatcher = openDispatcher(proxy, { ...tls, rejectUnauthorized })
    dispatchers.set(key, dispatcher)
    return dispatcher
  }

  const sendOnce = async ({ method, url, headers, body, signal }: HttpRequest): Promise<HttpReply> => {
    signal.throwIfAborted()
    if (!options.allowLoopback) checkPublic(url.hostname)
    const { headersMs, bodyIdleMs } = options.limits
    // undici notices an abort only when a connection stands, which a silent host delays until the time limit.
    const reply = await unlessAborted(
      dispatcherFor(url).request({
        method,
        origin: url.origin,
        path: url.pathname + url.search,
        headers: { 'user-agent': 'bandsox', ...headers },
        body: body ?? null,
        headersTimeout: headersMs,
        bodyTimeout: bodyIdleMs,
        signal,
      }),
      signal,
    )
    // Whoever reads the body meets its error there; before that, an error without a listener would end the process.
    reply.body.on('error', () => undefined)
    return { url, status: reply.statusCode, headers: reply.headers, body: reply.body }
  }

  const send = async (request: HttpRequest): Promise<HttpReply> => {
    const { url, signal, tries = TRIES } = request
    for (let attempt = 1; ; attempt++) {
      const isLast = attempt >= tries
      let waitMs = options.limits.backoffMs * 2 ** (attempt - 1)
      try {
        const reply = await sendOnce(request)
        if (reply.status !== 429 && reply.status < 500) return reply
        waitMs = retryAfterMs(reply.headers['retry-after']) ?? waitMs
        if (isLast || waitMs > MAX_RETRY_AFTER_MS) return reply
        options.debug(`${url.host} answers ${reply.status}: trying again in ${waitMs} ms`)
        await discard(reply)
      } catch (error) {
        signal.throwIfAborted()
        if (error instanceof BandSoxError) throw error // of what was configured, or is not allowed
        if (isLast || !isPassing(error))
          throw transportError(url.host, error, url.hostname === hostname ? url.host : options.host)
        options.debug(`${url.host}: ${messageOf(error)}: trying again in ${waitMs} ms`)
      }
      await pause(waitMs, signal)
    }
  }

  const sendFollowing = async (request: HttpRequest): Promise<HttpReply> => {
    let current = request
    for (let followed = 0; ; followed++) {
      const reply = await send(current)
      if (![301, 302, 303, 307, 308].includes(reply.status)) return reply
      await discard(reply)
      const { host } = current.url
      if (followed === MAX_REDIRECTS)
        throw new BandSoxError('registry-failed', `${host} redirects more than ${MAX_REDIRECTS} times`)
      const url = redirectTarget(reply)
      if (current.url.protocol === 'https:' && url.protocol === 'http:' && !options.allowDowngrade)
        throw new BandSoxError('registry-failed', `${host} redirects from HTTPS to plain HTTP at ${url.host}`)
      const { authorization, ...others } = current.headers
      const isSameOrigin = url.origin === current.url.origin && authorization !== undefined
      current = { ...current, url, headers: isSameOrigin ? { ...others, authorization } : others }
    }
  }

  return {
    send,
    sendFollowing,
    async close() {
      await Promise.all([...dispatchers.values()].map((dispatcher) => dispatcher.destroy()))
    },
  }
}

/** Seconds or a date, see RFC 9110, 10.2.3. */
function retryAfterMs(header: string | string[] | undefined): number | undefined {
  const text = [header].flat()[0]?.trim()
  if (text === undefined) return undefined
  if (/^\d{1,9}$/.test(text)) return Number(text) * 1000
  const at = Date.parse(text)
  return Number.isNaN(at) ? undefined : Math.max(0, at - Date.now())
}

function redirectTarget(reply: HttpReply): URL {
  const location = headerOf(reply, 'location') ?? ''
  const { host } = reply.url
  if (location === '') throw new BandSoxError('registry-failed', `${host} redirects without saying whereto`)
  let url: URL
  try {
    url = new URL(location, reply.url)
  } catch (error) {
    throw new BandSoxError('registry-failed', `${host} redirects to what is no address`, { cause: error })
  }
  if (!/^https?:$/.test(url.protocol))
    throw new BandSoxError('registry-failed', `${host} redirects to an address of the kind ${url.protocol}`)
  return url
}
