/**
 * Logs in to one server for one repository: answers a challenge of its 401 with a token or a password, and keeps the answer.
 *
 * A registry that wants a token names a token server (`realm`), and what to ask it for. The token server gives a token to
 * anybody for a public image; it is the only one that sees the password.
 *
 * @see https://distribution.github.io/distribution/spec/auth/token/ and …/oauth/
 */
import { BandSoxError } from '@bandsox/sdk'
import * as z from 'zod'
import { attempting } from './attempting.js'
import type { Challenge } from './challenge.js'
import { type CredentialSearch, describeSearch } from './credentials.js'
import type { HttpClient } from './http.js'
import type { Endpoint } from './registry-config.js'
import { readBody } from './reply.js'
import { replyError } from './reply-error.js'
import { unlessAborted } from './unless-aborted.js'

const MAX_TOKEN_REPLY_BYTES = 64 * 1024

/** Printable ASCII: it becomes part of a header. */
const token = z.string().regex(/^[\x21-\x7e]+$/)
const tokenReplySchema = z
  .union([z.object({ token }), z.object({ access_token: token })])
  .transform((reply) => ('token' in reply ? reply.token : reply.access_token))

export interface Authorizer {
  /** The header Authorization for the next request, once it is known that there must be one. */
  current(): string | undefined
  /**
   * Answers a 401. Requests that are refused at the same time wait for one answer.
   *
   * @param refused The header that was sent.
   * @returns A header to try instead; undefined when there is none.
   * @throws `registry-unauthorized` from the token server; `registry-failed`, `registry-unreachable`; `signal.reason`.
   */
  answer(challenges: Challenge[], refused: string | undefined, signal: AbortSignal): Promise<string | undefined>
  /** With which credentials it was asked, in words. */
  asked(): string | undefined
}

export interface AuthorizerOptions {
  endpoint: Endpoint
  http: HttpClient
  /** Called once, at the first challenge: helper programs take their time, and public images of many registries need none. */
  search: (signal: AbortSignal) => Promise<CredentialSearch>
  /** Aborted when the source is closed. */
  closed: AbortSignal
  debug: (message: string) => void
}

export function createAuthorizer({ endpoint, http, search, closed, debug }: AuthorizerOptions): Authorizer {
  let header: string | undefined
  let pending: Promise<string | undefined> | undefined
  let searched: CredentialSearch | undefined

  const obtain = async (challenges: Challenge[]): Promise<string | undefined> => {
    const bearer = challenges.find(({ scheme }) => scheme === 'bearer')
    if (bearer === undefined && !challenges.some(({ scheme }) => scheme === 'basic')) return undefined
    if (searched === undefined) {
      searched = await search(closed)
      for (const problem of searched.problems) debug(problem)
    }
    if (bearer === undefined) return basicHeader(searched)
    const realm = parseRealm(bearer, endpoint)
    const found = searched
    return attempting(`no token from ${realm.host}`, async () => `Bearer ${await fetchToken(realm, bearer, found)}`)
  }

  const fetchToken = async (realm: URL, { parameters }: Challenge, found: CredentialSearch): Promise<string> => {
    // Of no repository: it is only asked whether the credentials are good.
    const usual = endpoint.repository === '' ? undefined : `repository:${endpoint.repository}:pull`
    const scope = parameters.get('scope') ?? usual
    const service = parameters.get('service')
    const query: [string, string][] = [
      ...(service === undefined ? [] : [['service', service] as [string, string]]),
      ...(scope === undefined ? [] : [['scope', scope] as [string, string]]),
    ]
    const reply = await (found.found?.kind === 'identity-token'
      ? http.send(refreshRequest(realm, query, found.found.token, closed))
      : http.sendFollowing(tokenRequest(realm, query, basicHeader(found), closed)))
    if (reply.status !== 200)
      throw await replyError(reply, { notFound: 'registry-failed', asked: describeSearch(found) }, closed)
    const tooLarge = () => new BandSoxError('registry-failed', `its reply has more than ${MAX_TOKEN_REPLY_BYTES} bytes`)
    return parseTokenReply(await readBody(reply, MAX_TOKEN_REPLY_BYTES, closed, tooLarge))
  }

  return {
    current: () => header,
    asked: () => searched && describeSearch(searched),
    async answer(challenges, refused, signal) {
      // Another request has got a new one in the meantime.
      if (header !== undefined && header !== refused) return header
      // It does not end with the request that happens to be the first: others wait for it too.
      pending ??= obtain(challenges)
        .then((obtained) => {
          header = obtained
          return obtained
        })
        .finally(() => {
          pending = undefined
        })
      const answer = await unlessAborted(pending, signal)
      return answer === refused ? undefined : answer
    },
  }
}

function basicHeader({ found }: CredentialSearch): string | undefined {
  if (found?.kind !== 'password') return undefined
  return `Basic ${Buffer.from(`${found.username}:${found.password}`, 'utf8').toString('base64')}`
}

function parseRealm({ parameters }: Challenge, endpoint: Endpoint): URL {
  const text = parameters.get('realm') ?? ''
  if (!URL.canParse(text) || !/^https?:$/.test(new URL(text).protocol))
    throw new BandSoxError('registry-failed', `${endpoint.host} asks for a token without saying whom to ask`)
  const realm = new URL(text)
  if (realm.protocol === 'http:' && !endpoint.schemes.includes('http'))
    throw new BandSoxError(
      'registry-failed',
      `${endpoint.host} asks for a token over plain HTTP, from ${realm.host}: credentials would be readable on the way`,
      { hint: `if you trust the network, set "insecure" of ${endpoint.registry} in the configuration of registries` },
    )
  return realm
}

function tokenRequest(realm: URL, query: [string, string][], authorization: string | undefined, signal: AbortSignal) {
  const url = new URL(realm)
  for (const [name, value] of query) url.searchParams.append(name, value)
  const headers: Record<string, string> = authorization === undefined ? {} : { authorization }
  return { method: 'GET' as const, url, headers, signal }
}

function refreshRequest(realm: URL, query: [string, string][], refreshToken: string, signal: AbortSignal) {
  const grant: [string, string][] = [
    ['grant_type', 'refresh_token'],
    ['refresh_token', refreshToken],
    ['client_id', 'bandsox'],
  ]
  const body = new URLSearchParams([...grant, ...query]).toString()
  const headers = { 'content-type': 'application/x-www-form-urlencoded' }
  return { method: 'POST' as const, url: realm, headers, body, signal }
}

function parseTokenReply(bytes: Buffer): string {
  let json: unknown
  try {
    json = JSON.parse(bytes.toString('utf8'))
  } catch {
    // The parser's own message may quote the token.
    throw new BandSoxError('registry-failed', 'its reply is no JSON')
  }
  const parsed = tokenReplySchema.safeParse(json)
  if (parsed.success) return parsed.data
  throw new BandSoxError('registry-failed', 'its reply has no token')
}
