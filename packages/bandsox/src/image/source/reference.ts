/**
 * Parses what a user writes to say where an image comes from. No I/O.
 *
 * References of a registry follow Docker's rules: `alpine` is `docker.io/library/alpine:latest`, and what stands before the
 * first slash is a registry only when it has a dot or a colon, or is `localhost`. The other kinds have skopeo's prefixes.
 *
 * @see https://github.com/distribution/reference (reference.go, normalize.go)
 * @see containers-transports(5)
 */
import { BandSoxError } from '@bandsox/sdk'

export interface RegistryReference {
  kind: 'registry'
  /** Host, with a port if one was given: `docker.io`, `localhost:5000`. */
  registry: string
  /** With its namespace: `library/alpine`. */
  repository: string
  /** Undefined only beside a digest. */
  tag: string | undefined
  /** `sha256:…`; what the tag means does not matter then. */
  digest: string | undefined
}

export type SourceReference =
  | RegistryReference
  /** An OCI layout; without a tag it must hold one image. */
  | { kind: 'oci'; folder: string; tag: string | undefined }
  | { kind: 'oci-archive'; file: string; tag: string | undefined }
  /** What `docker save` writes; `reference` is the canonical text of one of its images. */
  | { kind: 'docker-archive'; file: string; reference: string | undefined }
  /** A name or an id, as that program understands it. */
  | { kind: 'docker-daemon' | 'podman'; name: string }
  /** A tar of a file system. */
  | { kind: 'rootfs'; file: string }

export interface ReferenceOptions {
  /** The registry of names without one; has a dot, a port, or is `localhost`. Default: `docker.io`. */
  shortNameRegistry?: string
}

const ALPHANUMERIC = '[a-z0-9]+'
const COMPONENT = `${ALPHANUMERIC}(?:(?:[._]|__|-+)${ALPHANUMERIC})*`
const REPOSITORY = new RegExp(`^${COMPONENT}(?:/${COMPONENT})*$`)
const DOMAIN_COMPONENT = '(?:[a-z0-9]|[a-z0-9][a-z0-9-]*[a-z0-9])'
const REGISTRY = new RegExp(`^(?:${DOMAIN_COMPONENT}(?:\\.${DOMAIN_COMPONENT})*|\\[[a-f0-9:]+\\])(?::[0-9]{1,5})?$`)
const TAG = /^\w[\w.-]{0,127}$/
const SHA256 = /^sha256:[0-9a-f]{64}$/
const IMAGE_ID = /^(?:sha256:)?[0-9a-f]{12,64}$/
/** Of `org.opencontainers.image.ref.name`, which may be a whole reference. See OCI image-spec, annotations.md. */
const LAYOUT_TAG = /^[A-Za-z0-9](?:[\w.:@/+-]{0,253}[A-Za-z0-9])?$/
/** Of registry, slash and repository together, as Docker counts. */
const MAX_NAME_LENGTH = 255
/** Longer text is no reference; it also bounds what the expressions above look at. */
const MAX_TEXT_LENGTH = 4096

/**
 * @param text For the kinds with a path, `KIND:PATH[:TAG]`; the path ends at the first colon. The name of a kind wins over an
 *   image of that name: Docker's image `podman` with a tag is `docker://podman:TAG`.
 * @throws `bad-request` with what is wrong and an example.
 */
export function parseReference(text: string, options: ReferenceOptions = {}): SourceReference {
  if (text.length > MAX_TEXT_LENGTH)
    throw invalid(`${text.slice(0, 40)}…`, `it has ${text.length} characters, over ${MAX_TEXT_LENGTH}`)
  // A NUL would end the path early in a system call.
  if (/\p{Cc}/u.test(text)) throw invalid(JSON.stringify(text), 'it has control characters')
  const colon = text.indexOf(':')
  const rest = text.slice(colon + 1)
  switch (text.slice(0, Math.max(colon, 0))) {
    case 'docker':
      if (rest.startsWith('//')) return parseRegistryReference(rest.slice(2), options)
      break
    case 'oci': {
      const [folder, tag] = splitPath(text, rest, 'oci:/images/alpine:3.20')
      return { kind: 'oci', folder, tag: layoutTag(text, tag) }
    }
    case 'oci-archive': {
      const [file, tag] = splitPath(text, rest, 'oci-archive:alpine.tar:3.20')
      return { kind: 'oci-archive', file, tag: layoutTag(text, tag) }
    }
    case 'docker-archive': {
      const [file, name] = splitPath(text, rest, 'docker-archive:alpine.tar:alpine:3.20')
      const reference = name === undefined ? undefined : formatReference(parseRegistryReference(name, options))
      return { kind: 'docker-archive', file, reference }
    }
    case 'docker-daemon':
      return { kind: 'docker-daemon', name: engineName(text, rest) }
    case 'podman':
      return { kind: 'podman', name: engineName(text, rest) }
    case 'rootfs':
      // Nothing follows the file, so its name may have colons.
      if (rest === '') throw invalid(text, 'the file is missing', 'rootfs:rootfs.tar.gz')
      return { kind: 'rootfs', file: rest }
    case 'http':
    case 'https':
      if (rest.startsWith('//')) throw invalid(text, 'it is a URL', 'ghcr.io/owner/name:tag')
  }
  return parseRegistryReference(text, options)
}

/**
 * @param text Without a prefix of its kind.
 * @throws `bad-request` with what is wrong and an example.
 */
export function parseRegistryReference(text: string, options: ReferenceOptions = {}): RegistryReference {
  const [beforeDigest = '', digest, ...more] = text.split('@')
  if (more.length > 0) throw invalid(text, 'it has more than one @')
  if (digest !== undefined && !SHA256.test(digest))
    throw invalid(text, 'what follows the @ is no SHA-256 digest', `alpine@sha256:${'0123456789abcdef'.repeat(4)}`)
  const lastColon = beforeDigest.lastIndexOf(':')
  const hasTag = lastColon > beforeDigest.lastIndexOf('/') // otherwise it stands before a port
  const name = hasTag ? beforeDigest.slice(0, lastColon) : beforeDigest
  const tag = hasTag ? beforeDigest.slice(lastColon + 1) : undefined
  if (tag !== undefined && !TAG.test(tag))
    throw invalid(text, 'a tag has 1 to 128 letters, digits, dots, dashes and underscores, and begins with none of . -')
  if (/^[0-9a-f]{64}$/.test(name)) throw invalid(text, 'it is the id of an image, which no registry knows')
  const { registry, repository } = splitRegistry(text, name, options.shortNameRegistry ?? 'docker.io')
  const length = registry.length + 1 + repository.length
  if (length > MAX_NAME_LENGTH) throw invalid(text, `its name has ${length} characters, over ${MAX_NAME_LENGTH}`)
  return { kind: 'registry', registry, repository, tag: tag ?? (digest === undefined ? 'latest' : undefined), digest }
}

/** The text that means the same everywhere, and parses to the same reference. */
export function formatReference(reference: SourceReference): string {
  switch (reference.kind) {
    case 'registry': {
      const tag = reference.tag === undefined ? '' : `:${reference.tag}`
      const digest = reference.digest === undefined ? '' : `@${reference.digest}`
      return `${reference.registry}/${reference.repository}${tag}${digest}`
    }
    case 'oci':
      return `oci:${reference.folder}${reference.tag === undefined ? '' : `:${reference.tag}`}`
    case 'oci-archive':
      return `oci-archive:${reference.file}${reference.tag === undefined ? '' : `:${reference.tag}`}`
    case 'docker-archive':
      return `docker-archive:${reference.file}${reference.reference === undefined ? '' : `:${reference.reference}`}`
    case 'docker-daemon':
    case 'podman':
      return `${reference.kind}:${reference.name}`
    case 'rootfs':
      return `rootfs:${reference.file}`
  }
}

/** True for what stands before the first slash of a reference, when it names a registry and not a namespace. */
export const namesRegistry = (text: string): boolean => /[.:]/.test(text) || text === 'localhost'

/** True for `host`, `host:port` and `[IPv6]:port`, in lower case. */
export const isRegistry = (text: string): boolean => REGISTRY.test(text)

function splitRegistry(text: string, name: string, shortNameRegistry: string) {
  const slash = name.indexOf('/')
  const first = name.slice(0, Math.max(slash, 0)).toLowerCase() // names of hosts do not differ by case
  const isNamed = namesRegistry(first)
  const given = isNamed ? first : shortNameRegistry
  const registry = given === 'index.docker.io' || given === 'registry-1.docker.io' ? 'docker.io' : given
  if (!REGISTRY.test(registry)) throw invalid(text, `${registry} is no name of a host`)
  const rest = isNamed ? name.slice(slash + 1) : name
  const repository = registry === 'docker.io' && rest !== '' && !rest.includes('/') ? `library/${rest}` : rest
  if (REPOSITORY.test(repository)) return { registry, repository }
  if (rest === '') throw invalid(text, 'the name of the repository is missing')
  if (/[A-Z]/.test(rest)) throw invalid(text, 'the name of a repository has no upper-case letters', rest.toLowerCase())
  throw invalid(
    text,
    'the name of a repository has lower-case letters and digits, with single dots, dashes or underscores between them',
  )
}

/** The path ends at the first colon, as skopeo has it: what follows may have colons of its own. */
function splitPath(text: string, rest: string, example: string): [string, string | undefined] {
  const colon = rest.indexOf(':')
  const path = colon === -1 ? rest : rest.slice(0, colon)
  if (path === '') throw invalid(text, 'the path is missing', example)
  return [path, colon === -1 ? undefined : rest.slice(colon + 1)]
}

function layoutTag(text: string, tag: string | undefined): string | undefined {
  if (tag === undefined || LAYOUT_TAG.test(tag)) return tag
  throw invalid(text, `${JSON.stringify(tag)} is no tag; a path with a colon in it cannot be named`, 'oci:/images:3.20')
}

/** Checked, since it becomes an argument of the engine's program; not expanded, since each engine has rules of its own. */
function engineName(text: string, name: string): string {
  if (!IMAGE_ID.test(name)) parseRegistryReference(name) // throws
  if (name === '') throw invalid(text, 'the name is missing', 'podman:localhost/mine:latest')
  return name
}

function invalid(text: string, what: string, example = 'ghcr.io/owner/name:tag'): BandSoxError {
  const message = `${text || 'an empty text'} is no reference of an image: ${what}; such as ${example}`
  const hint = /^[./~]/.test(text) ? `for a file or a folder: bandsox image import ${text}` : undefined
  return new BandSoxError('bad-request', message, hint === undefined ? {} : { hint })
}
