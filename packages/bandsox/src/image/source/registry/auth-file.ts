/**
 * Files with credentials of registries, in the shape that Docker's config.json and podman's auth.json share.
 *
 * @see https://github.com/docker/cli/blob/master/cli/config/configfile/file.go
 * @see containers-auth.json(5)
 */
import path from 'node:path'
import { BandSoxError, type RegistryCredentials } from '@bandsox/sdk'
import * as z from 'zod'
import { readJsonFile, writeJsonFile } from '../../../process/json-file.js'
import { makeFolder } from '../../../process/make-folder.js'
import { isRegistry } from '../reference.js'

/** What these files call docker.io, since before registries had repositories of their own. */
export const DOCKER_HUB_KEY = 'https://index.docker.io/v1/'

const entrySchema = z.looseObject({
  /** Base64 of `username:password`. */
  auth: z.string().nullish(),
  username: z.string().nullish(),
  password: z.string().nullish(),
  identitytoken: z.string().nullish(),
})

/** Unknown fields are kept: a file that is changed stays whole. */
const authFileSchema = z.looseObject({
  auths: z.record(z.string(), entrySchema.nullable()).nullish(),
  /** Name of a helper program by registry. */
  credHelpers: z.record(z.string(), z.string()).nullish(),
  /** Name of the helper program of all other registries. */
  credsStore: z.string().nullish(),
})

export type AuthFile = z.infer<typeof authFileSchema>

export type Secret =
  | { kind: 'password'; username: string; password: string }
  /** Exchanged for a token of limited scope, as an OAuth 2 refresh token. */
  | { kind: 'identity-token'; token: string }

/** @returns undefined when there is no such file. @throws `artifact-damaged`. */
export async function readAuthFile(file: string): Promise<AuthFile | undefined> {
  return readJsonFile(file, authFileSchema, `repair or remove it: ${file}`)
}

/**
 * The most exact entry for a repository: of `host/namespace/name`, `host/namespace` or `host`.
 *
 * @param entries By a key as these programs have written it over the years: with a scheme, with `/v1/` at its end.
 */
export function entryFor<T>(
  entries: Record<string, T> | null | undefined,
  registry: string,
  repository: string,
): T | undefined {
  const byKey = new Map(Object.entries(entries ?? {}).map(([key, value]) => [normalizeKey(key), value]))
  const parts = [registry, ...repository.split('/')]
  for (let count = parts.length; count > 0; count--) {
    const value = byKey.get(parts.slice(0, count).join('/'))
    if (value !== undefined) return value
  }
  return undefined
}

/** @returns undefined for an entry without content: such stand beside a helper program that has it. */
export function secretOf(entry: z.infer<typeof entrySchema> | null | undefined): Secret | undefined {
  if (entry?.identitytoken) return { kind: 'identity-token', token: entry.identitytoken }
  if (entry?.auth) {
    const decoded = Buffer.from(entry.auth, 'base64').toString('utf8').replace(/\0+$/, '') // Docker's padding
    const colon = decoded.indexOf(':')
    if (colon > 0) return { kind: 'password', username: decoded.slice(0, colon), password: decoded.slice(colon + 1) }
  }
  if (entry?.username && entry.password) return { kind: 'password', username: entry.username, password: entry.password }
  return undefined
}

/**
 * Writes credentials into our own file, which only its owner can read. Of two changes at the same time the later wins whole.
 *
 * @param file Made when it is not there, with its folder.
 * @param registry `docker.io`, `localhost:5000`.
 * @throws `bad-request` for what is no registry, or a user name with a colon; `artifact-damaged`.
 */
export async function storeCredentials(
  file: string,
  registry: string,
  { username, password }: RegistryCredentials,
): Promise<void> {
  if (username === '' || username.includes(':'))
    throw new BandSoxError(
      'bad-request',
      `cannot store credentials of ${registry}: the user name is empty, or has a colon`,
    )
  const key = keyOf(registry)
  await makeFolder(path.dirname(file), 0o700)
  const content = await readAuthFile(file)
  const auth = Buffer.from(`${username}:${password}`, 'utf8').toString('base64')
  await writeJsonFile(file, { ...content, auths: { ...withoutKey(content, key), [key]: { auth } } })
}

/**
 * @param registry `docker.io`, `localhost:5000`.
 * @returns False when there were none.
 * @throws `bad-request` for what is no registry; `artifact-damaged`.
 */
export async function eraseCredentials(file: string, registry: string): Promise<boolean> {
  const key = keyOf(registry)
  const content = await readAuthFile(file)
  const auths = withoutKey(content, key)
  if (Object.keys(auths).length === Object.keys(content?.auths ?? {}).length) return false
  await writeJsonFile(file, { ...content, auths })
  return true
}

/** The key of a registry in a file, and its name for a helper program. */
export const serverKey = (registry: string): string => (registry === 'docker.io' ? DOCKER_HUB_KEY : registry)

/** @throws `bad-request` for what is no registry. */
export function keyOf(registry: string): string {
  if (isRegistry(registry)) return serverKey(normalizeKey(registry))
  throw new BandSoxError(
    'bad-request',
    `${registry || 'an empty text'} is no registry, such as ghcr.io or localhost:5000`,
  )
}

function withoutKey(content: AuthFile | undefined, key: string) {
  const others = Object.entries(content?.auths ?? {}).filter(([each]) => normalizeKey(each) !== normalizeKey(key))
  return Object.fromEntries(others)
}

function normalizeKey(key: string): string {
  const bare = key.replace(/^https?:\/\//, '').replace(/(\/v[12])?\/*$/, '')
  return bare === 'index.docker.io' || bare === 'registry-1.docker.io' ? 'docker.io' : bare
}
