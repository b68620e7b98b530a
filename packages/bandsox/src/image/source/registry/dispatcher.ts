/** Opens the connections of undici to a server: directly, or through a proxy. */
import { readFile } from 'node:fs/promises'
import { rootCertificates } from 'node:tls'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import { Agent, type Dispatcher, ProxyAgent } from 'undici'
import { lookupPublic } from './public-address.js'

/** Of all headers of a reply; signed addresses of storage services have about 2 KiB. */
const MAX_HEADER_BYTES = 64 * 1024

/** As node:tls and undici name them. */
export interface TlsSettings {
  /** For TCP and TLS together, in milliseconds. */
  timeout: number
  /** Names may not lead to this host or to a private network. */
  publicOnly: boolean
  rejectUnauthorized: boolean
  /** PEM; without it, the usual ones. */
  ca?: string[]
}

/**
 * @param proxy URL.
 * @throws `bad-request` when it is none.
 */
export function openDispatcher(proxy: string | undefined, { publicOnly, ...tls }: TlsSettings): Dispatcher {
  if (proxy === undefined) {
    const connect = publicOnly ? { ...tls, lookup: lookupPublic } : tls
    return new Agent({ connect, maxHeaderSize: MAX_HEADER_BYTES })
  }
  try {
    return new ProxyAgent({
      uri: proxy,
      requestTls: tls,
      // The proxy is not the registry: who trusts a registry's certificate without proof does not trust the proxy's.
      proxyTls: { timeout: tls.timeout },
      // Proxies commonly let CONNECT through to port 443 alone.
      proxyTunnel: false,
      maxHeaderSize: MAX_HEADER_BYTES,
    })
  } catch (error) {
    // Not quoted, and not kept as the cause: there may be a password in it.
    throw new BandSoxError('bad-request', `the address of the proxy is none: ${messageOf(error)}`)
  }
}

/**
 * The usual certificates, and those of a file. Setting any replaces Node's own, and with them what NODE_EXTRA_CA_CERTS added.
 *
 * @param file PEM.
 * @throws `bad-request` when it cannot be read.
 */
export async function readCertificates(file: string): Promise<string[]> {
  try {
    return [...rootCertificates, await readFile(file, 'utf8')]
  } catch (error) {
    const why = isSystemError(error, 'ENOENT') ? 'it is not there' : messageOf(error)
    throw new BandSoxError('bad-request', `cannot read the certificates of ${file}: ${why}`, { cause: error })
  }
}
