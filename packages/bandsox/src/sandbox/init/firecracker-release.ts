/**
 * Where a release of Firecracker is found, and what it is called there. No I/O.
 *
 * @see https://github.com/firecracker-microvm/firecracker/releases; Firecracker docs/getting-started.md, "Getting Firecracker"
 */
import { BandSoxError } from '@bandsox/sdk'

/** The newest release when this was written. */
export const DEFAULT_FIRECRACKER_VERSION = '1.16.1'
export const FIRECRACKER_RELEASES = 'https://github.com/firecracker-microvm/firecracker/releases/download/'

/** Of release archives, by Node's name of the architecture. */
const architectures: Partial<Record<NodeJS.Architecture, string>> = { x64: 'x86_64', arm64: 'aarch64' }

export interface ReleaseRequest {
  /** Such as `1.16.1`; default: what the name of the archive says, else {@link DEFAULT_FIRECRACKER_VERSION}. */
  version?: string | undefined
  /** Of an archive (`.tgz`, `.tar.gz`), or of a mirror's folder. Default: {@link FIRECRACKER_RELEASES}. */
  url?: string | undefined
}

export interface ReleaseLocation {
  version: string
  /** Such as `firecracker-v1.16.1-x86_64.tgz`. */
  archiveName: string
  /** Places of the archive, to be tried in this order. */
  archives: URL[]
  /** Paths in the archive. */
  programs: { firecracker: string; jailer: string }
}

/** @throws `bad-request` for a version or URL that is none; `host-unsupported` on an architecture without releases. */
export function locateRelease(
  { version, url = FIRECRACKER_RELEASES }: ReleaseRequest,
  architecture: NodeJS.Architecture = process.arch,
): ReleaseLocation {
  const machine = architectures[architecture]
  if (machine === undefined)
    throw new BandSoxError('host-unsupported', `there are no releases of Firecracker for ${architecture}`)
  const base = parseUrl(url, '--firecracker-url')
  const isArchive = /\.(?:tgz|tar\.gz)$/.test(base.pathname)
  const named = isArchive ? /firecracker-v(\d+\.\d+\.\d+)-/.exec(base.pathname)?.[1] : undefined
  const chosen = checkVersion(version ?? named ?? DEFAULT_FIRECRACKER_VERSION)
  const suffix = `v${chosen}-${machine}`
  const archiveName = `firecracker-${suffix}.tgz`
  const folder = `release-${suffix}`
  return {
    version: chosen,
    archiveName,
    // A mirror of the release page has a folder for each version; a folder that somebody filled by hand has not.
    archives: isArchive ? [base] : [below(base, `v${chosen}/${archiveName}`), below(base, archiveName)],
    programs: { firecracker: `${folder}/firecracker-${suffix}`, jailer: `${folder}/jailer-${suffix}` },
  }
}

/** As a person writes it, `v1.16.1` too. */
function checkVersion(text: string): string {
  const version = /^v?(\d{1,4}\.\d{1,4}\.\d{1,4})$/.exec(text)?.[1]
  if (version !== undefined) return version
  throw new BandSoxError(
    'bad-request',
    `${JSON.stringify(text)} is no version of Firecracker; such as ${DEFAULT_FIRECRACKER_VERSION}`,
  )
}

/** @param option What it was given as. @throws `bad-request`. */
export function parseUrl(text: string, option: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined
  if (url !== undefined && /^(?:https?|file):$/.test(url.protocol)) {
    if (url.protocol !== 'file:' || url.host === '') return url
    throw new BandSoxError(
      'bad-request',
      `${option}: ${text} names another host; a file of this one has three slashes`,
      {
        hint: 'such as file:///mnt/usb/name',
      },
    )
  }
  throw new BandSoxError(
    'bad-request',
    `${option}: ${JSON.stringify(text)} is no URL of the kind http, https or file`,
    {
      hint: 'a file of this host is written file:///path/to/name',
    },
  )
}

/** `name` in the folder that `base` is, with or without a slash at its end; a query, such as a token, stays. */
function below(base: URL, name: string): URL {
  const url = new URL(base)
  url.pathname = `${base.pathname.replace(/\/+$/, '')}/${name}`
  return url
}

/** Where the checksum of a file may lie, beside it. */
export function checksumUrls(file: URL): URL[] {
  return ['.sha256.txt', '.sha256'].map((suffix) => {
    const url = new URL(file)
    url.pathname += suffix
    return url
  })
}

/**
 * Finds a file's checksum in what sha256sum printed, or in a file with nothing but a checksum.
 *
 * @returns Lower-case hex; undefined when it is not told, or told twice.
 */
export function parseChecksum(text: string, name: string): string | undefined {
  const lines = text
    .split('\n')
    .map((line) => line.trim())
    .filter((line) => line !== '')
  const told = new Set<string>()
  for (const line of lines) {
    const [, hex = '', rest] = /^([0-9a-fA-F]{64})(?:\s+\*?(.+))?$/.exec(line) ?? []
    const isOfIt = rest === undefined ? lines.length === 1 : rest.split('/').at(-1) === name
    if (hex !== '' && isOfIt) told.add(hex.toLowerCase())
  }
  return told.size === 1 ? [...told][0] : undefined
}

/** @throws `bad-request`. */
export function checkSha256(text: string, option: string): string {
  if (/^[0-9a-fA-F]{64}$/.test(text)) return text.toLowerCase()
  throw new BandSoxError('bad-request', `${option}: it must have 64 hexadecimal digits, as sha256sum prints them`)
}
