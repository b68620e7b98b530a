/** Opens an image in a container registry: which servers have it, and what they are asked with. */
import type { RegistryCredentials } from '@bandsox/sdk'
import type { RegistryReference } from '../reference.js'
import { type CredentialSources, findCredentials, givenCredentials } from './credentials.js'
import { openEndpoint } from './endpoint-client.js'
import { endpointSource } from './endpoint-source.js'
import { DEFAULT_HTTP_LIMITS, type HttpLimits } from './http.js'
import { mirrored, type NamedSource } from './mirrored.js'
import type { ProxySettings } from './proxy.js'
import { endpointsOf, type RegistryConfig } from './registry-config.js'
import type { RegistrySource } from './registry-source.js'

export interface RegistryOptions {
  reference: RegistryReference
  config: RegistryConfig
  /** For the registry, not for its mirrors. Default: what `credentialSources` have. */
  credentials?: RegistryCredentials | undefined
  credentialSources: CredentialSources
  /** Default: none. */
  proxy?: ProxySettings
  limits?: Partial<HttpLimits>
  /** Whether registry, mirrors, token servers and redirects may be on this host or in a private network. Default: true. */
  allowLoopback?: boolean
  /** Told what went wrong without an error: a mirror passed over, another try, HTTP instead of HTTPS. */
  debug?: (message: string) => void
}

/**
 * Opens an image in a registry; nothing is sent yet.
 *
 * Documents asked for by digest are verified; who reads a blob checks it. The source's methods throw
 * `registry-unreachable`, `registry-unauthorized`, `permission-denied`, `image-not-found`, `registry-failed`, `digest-mismatch`, `image-invalid`, or
 * `signal.reason`; after `close()` they throw `cancelled`. The stream of a blob that breaks off fails with `registry-failed`:
 * open it again with the offset that was reached.
 *
 * @throws `bad-request` when a configured file of certificates cannot be read; of a proxy without an address that is known only
 *   at the first request.
 */
export async function openRegistry(options: RegistryOptions): Promise<RegistrySource> {
  const { reference, config, credentialSources, proxy = {}, debug = () => undefined, allowLoopback = true } = options
  const limits = { ...DEFAULT_HTTP_LIMITS, ...options.limits }
  const { credentials } = options
  const endpoints = endpointsOf(reference.registry, reference.repository, config)
  const opened: NamedSource[] = []
  try {
    for (const [index, endpoint] of endpoints.entries()) {
      const isMirror = index < endpoints.length - 1
      const given = isMirror || credentials === undefined ? undefined : givenCredentials(credentials)
      const search = async (signal: AbortSignal) =>
        given ?? (await findCredentials(endpoint.registry, endpoint.repository, credentialSources, signal))
      const client = await openEndpoint({ endpoint, search, proxy, limits, allowLoopback, debug })
      opened.push({ name: endpoint.host, source: endpointSource(client, reference) })
    }
  } catch (error) {
    await Promise.all(opened.map(({ source }) => source.close()))
    throw error
  }
  return mirrored(opened, debug)
}
