/**
 * Tells public addresses from those of this host and of private networks: a client of a server of ours must not reach with its
 * help what only the server can reach.
 *
 * @see https://www.iana.org/assignments/iana-ipv4-special-registry/ and …/iana-ipv6-special-registry/
 */
import { lookup } from 'node:dns'
import { BlockList, isIP, isIPv4, type LookupFunction } from 'node:net'
import { BandSoxError } from '@bandsox/sdk'

const notPublic = new BlockList()
for (const [address, bits] of [
  ['0.0.0.0', 8],
  ['10.0.0.0', 8],
  ['100.64.0.0', 10],
  ['127.0.0.0', 8],
  ['169.254.0.0', 16],
  ['172.16.0.0', 12],
  ['192.0.0.0', 24],
  ['192.168.0.0', 16],
  ['198.18.0.0', 15],
  ['224.0.0.0', 3],
] as const)
  notPublic.addSubnet(address, bits, 'ipv4')
for (const [address, bits] of [
  ['::', 128],
  ['::1', 128],
  ['64:ff9b::', 96], // IPv4 behind NAT64
  ['fc00::', 7],
  ['fe80::', 10],
  ['ff00::', 8],
] as const)
  notPublic.addSubnet(address, bits, 'ipv6')

/** @param address IPv4 or IPv6. */
export const isPublic = (address: string): boolean => !notPublic.check(address, isIPv4(address) ? 'ipv4' : 'ipv6')

/**
 * @param hostname Of a URL. A name passes: its addresses are looked at when it is connected to.
 * @throws `permission-denied`.
 */
export function checkPublic(hostname: string): void {
  const bare = hostname.replace(/^\[|\]$/g, '')
  if (isIP(bare) !== 0 && !isPublic(bare)) throw denied(hostname)
}

/** In place of node:dns for a connection, which is made to the very address that was looked at. */
export const lookupPublic: LookupFunction = (hostname, options, callback) => {
  lookup(hostname, { ...options, all: true }, (error, addresses) => {
    const [first] = addresses ?? []
    if (error !== null || first === undefined) callback(error ?? denied(hostname), '')
    else if (!addresses.every(({ address }) => isPublic(address))) callback(denied(hostname), '')
    else if (options.all === true) callback(null, addresses)
    else callback(null, first.address, first.family)
  })
}

const denied = (host: string): BandSoxError =>
  new BandSoxError('permission-denied', `${host} is on this host or in a private network, and must not be asked`)
