/**
 * Decides which proxy a request goes through, as the variables HTTP_PROXY, HTTPS_PROXY and NO_PROXY are read by Docker.
 * No I/O.
 *
 * undici's EnvHttpProxyAgent reads the environment by itself and announces on stderr that it is an experiment; it sends the
 * loopback through the proxy, knows no subnets, and takes `example.com` not to mean `registry.example.com`.
 *
 * @see https://pkg.go.dev/golang.org/x/net/http/httpproxy#Config
 */
import { BlockList, isIP, isIPv4 } from 'node:net'
import { isLoopback } from './registry-config.js'

export interface ProxySettings {
  /** URL of the proxy for plain HTTP. */
  http?: string | undefined
  /** URL of the proxy for HTTPS. */
  https?: string | undefined
  /** Hosts without one, separated by commas: `example.com` (and below), `.example.com`, `10.0.0.0/8`, `host:port`, `*`. */
  none?: string | undefined
}

/** @returns The URL of the proxy, or undefined for a direct connection. */
export function proxyFor(url: URL, settings: ProxySettings): string | undefined {
  const proxy = url.protocol === 'https:' ? settings.https : settings.http
  if (proxy === undefined || proxy === '' || isLoopback(url.host)) return undefined
  const isExempt = (settings.none ?? '').split(/[\s,]+/).some((rule) => rule !== '' && covers(rule.toLowerCase(), url))
  if (isExempt) return undefined
  return proxy.includes('://') ? proxy : `http://${proxy}`
}

function covers(rule: string, url: URL): boolean {
  if (rule === '*') return true
  const host = url.hostname.replace(/^\[|\]$/g, '')
  const [address = '', bits = ''] = rule.split('/')
  if (bits !== '') return isInSubnet(host, address, bits)
  const [, name = rule, port] = /^(.*[^:]|\[.*\]):(\d+)$/.exec(rule) ?? []
  if (port !== undefined && port !== (url.port || (url.protocol === 'https:' ? '443' : '80'))) return false
  const bare = name.replace(/^\[|\]$/g, '').replace(/^\*?\./, '')
  if (name.startsWith('.') || name.startsWith('*.')) return host.endsWith(`.${bare}`)
  return host === bare || (isIP(host) === 0 && host.endsWith(`.${bare}`))
}

function isInSubnet(host: string, address: string, bits: string): boolean {
  const family = isIPv4(address) ? 'ipv4' : 'ipv6'
  const length = Number(bits)
  const isSubnet =
    isIP(address) !== 0 && Number.isInteger(length) && length >= 0 && length <= (family === 'ipv4' ? 32 : 128)
  if (!isSubnet || isIP(host) === 0) return false
  const subnet = new BlockList()
  subnet.addSubnet(address, length, family)
  return subnet.check(host, isIPv4(host) ? 'ipv4' : 'ipv6')
}
