/** What the user configures about registries, and which servers follow from it for one registry. No I/O. */
import { isIPv4 } from 'node:net'
import * as z from 'zod'
import { isRegistry, namesRegistry } from '../reference.js'

const registrySchema = z.string().refine(isRegistry, 'is no name of a host, such as ghcr.io or localhost:5000')

const mirrorSchema = z.string().refine((text) => {
  if (!URL.canParse(text)) return false
  const { protocol, username, password, search, hash } = new URL(text)
  return /^https?:$/.test(protocol) && username + password + search + hash === ''
}, 'is an address without user, query and fragment, such as https://mirror.example/prefix')

const registryEntrySchema = z.strictObject({
  /**
   * Addresses asked before the registry itself, in this order. A path is put before the name of the repository:
   * `https://mirror.example/hub` is asked for `hub/library/alpine`, as with `location` in containers-registries.conf(5).
   */
  mirrors: z.array(mirrorSchema).max(16).default([]),
  /** True: TLS is not verified, and plain HTTP is used where there is no TLS. Default: true on this host's loopback alone. */
  insecure: z.boolean().optional(),
  /** Path of a PEM file with certificates to trust besides the usual ones. */
  ca: z.string().startsWith('/', 'is an absolute path').optional(),
})

export const registryConfigSchema = z.strictObject({
  /** By registry, and by host of a mirror. */
  registries: z.record(registrySchema, registryEntrySchema).default({}),
  /** The registry of names without one. */
  shortNameRegistry: registrySchema
    .refine(namesRegistry, 'has a dot or a port, or is localhost: otherwise it reads as a namespace')
    .default('docker.io'),
})

export type RegistryConfig = z.infer<typeof registryConfigSchema>

/** A server that speaks the registry protocol, and how to reach it. */
export interface Endpoint {
  /** As credentials and configuration name it: `docker.io`, `mirror.example:5000`. */
  registry: string
  /** Where its API is: `registry-1.docker.io`. */
  host: string
  /** Tried in this order until one connects. */
  schemes: ('https' | 'http')[]
  verifyTls: boolean
  /** PEM file with certificates to trust besides the usual ones. */
  ca: string | undefined
  /** The repository as this server names it. */
  repository: string
}

/** Docker's name for it in references is not the host that answers. */
const DOCKER_HUB_HOST = 'registry-1.docker.io'

/** The servers to ask for a repository: mirrors in their order, and the registry itself as the last. */
export function endpointsOf(registry: string, repository: string, config: RegistryConfig): Endpoint[] {
  const mirrors = (config.registries[registry]?.mirrors ?? []).map((text): Endpoint => {
    const url = new URL(text)
    const prefix = url.pathname.replace(/^\/+|\/+$/g, '')
    return {
      ...reach(url.host, config),
      // Who writes http:// means it.
      schemes: [url.protocol === 'http:' ? 'http' : 'https'],
      repository: prefix === '' ? repository : `${prefix}/${repository}`,
    }
  })
  return [...mirrors, { ...reach(registry, config), repository }]
}

function reach(registry: string, config: RegistryConfig): Omit<Endpoint, 'repository'> {
  const entry = config.registries[registry]
  const isInsecure = entry?.insecure ?? isLoopback(registry)
  return {
    registry,
    host: registry === 'docker.io' ? DOCKER_HUB_HOST : registry,
    schemes: isInsecure ? ['https', 'http'] : ['https'],
    verifyTls: !isInsecure,
    ca: entry?.ca,
  }
}

/** As Docker has it, see "insecure registries" of dockerd(8): nobody can listen in on the loopback. */
export function isLoopback(host: string): boolean {
  const name = host.replace(/:[0-9]+$/, '')
  return name === 'localhost' || name === '[::1]' || (isIPv4(name) && name.startsWith('127.'))
}
