/** Asks a registry whether credentials are good, before they are kept. */
import type { RegistryCredentials } from '@bandsox/sdk'
import { attempting } from './attempting.js'
import { givenCredentials } from './credentials.js'
import { openEndpoint } from './endpoint-client.js'
import { DEFAULT_HTTP_LIMITS } from './http.js'
import type { ProxySettings } from './proxy.js'
import { endpointsOf, type RegistryConfig } from './registry-config.js'
import { discard } from './reply.js'

export interface CheckOptions {
  /** Host, with a port if there is one. */
  registry: string
  credentials: RegistryCredentials
  config: RegistryConfig
  proxy?: ProxySettings
  debug?: (message: string) => void
  signal?: AbortSignal | undefined
}

/**
 * @throws `registry-unauthorized` when the registry, or its token server, refuses them; `registry-unreachable`,
 *   `registry-failed`, or `signal.reason`.
 * @see OCI distribution-spec, "Determining Support"
 */
export async function checkCredentials(options: CheckOptions): Promise<void> {
  const { registry, credentials, config, proxy = {}, debug = () => undefined, signal } = options
  const search = async () => givenCredentials(credentials)
  // The last is the registry itself: its mirrors have credentials of their own.
  for (const endpoint of endpointsOf(registry, '', config).slice(-1)) {
    const client = await openEndpoint({
      endpoint,
      search,
      proxy,
      limits: DEFAULT_HTTP_LIMITS,
      allowLoopback: true,
      debug,
    })
    try {
      await attempting(`cannot log in to ${registry}`, async () => {
        const { reply } = await client.request({ path: '/v2/', accept: [200], signal })
        await discard(reply)
      })
    } finally {
      await client.close()
    }
  }
}
