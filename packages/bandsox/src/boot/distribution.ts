/** Which kernel packages each supported distribution has for a virtual machine. */
import { readFile } from 'node:fs/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'

export interface Distribution {
  /** `ID` of os-release(5), such as `debian`. */
  id: string
  /** `VERSION_ID`, such as `12`; empty for a rolling one. */
  version: string
  /** `PRETTY_NAME`, for people. */
  title: string
}

interface KernelChoice {
  /** Package that depends on the newest kernel for virtual machines. */
  metaPackage: string
  /** What {@link metaPackage} is followed through, by prefix: Debian's image holds its modules, Ubuntu splits them off. */
  parts: readonly string[]
}

/**
 * Module suffix and compression of the bzImage's payload are read from the files themselves. As found: Debian 12 `.ko` and
 * LZ4, Debian 13 `.ko.xz` and zstd, Ubuntu 24.04 `.ko.zst` and zstd.
 */
const kernels: Record<string, KernelChoice> = {
  'debian 12': { metaPackage: 'linux-image-cloud-amd64', parts: ['linux-image-'] },
  'debian 13': { metaPackage: 'linux-image-cloud-amd64', parts: ['linux-image-'] },
  'ubuntu 24.04': { metaPackage: 'linux-image-virtual', parts: ['linux-image-', 'linux-modules-'] },
}

/** Parses the text of /etc/os-release. */
export function parseDistribution(osRelease: string): Distribution {
  const fields = new Map<string, string>()
  for (const line of osRelease.split('\n')) {
    const match = /^([A-Z_]+)=(["']?)(.*)\2$/.exec(line.trim())
    if (match?.[1] !== undefined) fields.set(match[1], match[3] ?? '')
  }
  const id = fields.get('ID') ?? 'linux'
  const version = fields.get('VERSION_ID') ?? ''
  return { id, version, title: fields.get('PRETTY_NAME') ?? `${id} ${version}`.trim() }
}

export async function readDistribution(): Promise<Distribution> {
  try {
    return parseDistribution(await readFile('/etc/os-release', 'utf8'))
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return parseDistribution('')
    throw error
  }
}

/** @throws `host-unsupported` for a distribution whose kernel packages we do not know. */
export function kernelChoice(distribution: Distribution): KernelChoice {
  const choice = kernels[`${distribution.id} ${distribution.version}`]
  if (choice !== undefined) return choice
  throw new BandSoxError(
    'host-unsupported',
    `cannot fetch a guest kernel on ${distribution.title}: known are ${Object.keys(kernels).join(', ')}`,
    {
      hint: 'give one: npm run setup -- --kernel PATH-OR-URL (a bzImage or an ELF vmlinux) [--kernel-modules FOLDER-OR-TAR]',
    },
  )
}
