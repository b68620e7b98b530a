/** What a Firecracker can do, by its version. Pure. */
import { BandSoxError } from '@bandsox/sdk'
import type { VmmCapabilities } from '../vmm.js'

/** The first whose devices a distribution's kernel finds (by ACPI), and which gives a guest the time of its restore. */
export const OLDEST_FIRECRACKER = '1.10.0'

export type Version = readonly [major: number, minor: number, patch: number]

/**
 * @param versionText What `firecracker --version` prints.
 * @throws `host-unsupported` for what is no Firecracker, or one that is too old.
 */
export function requireRecentFirecracker(versionText: string): { version: string; number: Version } {
  const match = /Firecracker v((\d+)\.(\d+)\.(\d+)[^\s]*)/.exec(versionText)
  if (match === null)
    throw new BandSoxError(
      'host-unsupported',
      `cannot tell Firecracker's version from ${JSON.stringify(versionText.slice(0, 80))}`,
      { hint: 'BANDSOX_FIRECRACKER is to name a firecracker of the project’s releases' },
    )
  const [, version = '', ...parts] = match
  const number = parts.map(Number) as unknown as Version
  if (isAtLeast(number, OLDEST_FIRECRACKER)) return { version, number }
  throw new BandSoxError(
    'host-unsupported',
    `Firecracker ${version} is too old: ${OLDEST_FIRECRACKER} or newer is needed`,
    {
      hint: 'fetch a newer one: bandsox init',
    },
  )
}

/** @param least As `1.16.0`. */
export function isAtLeast(version: Version, least: string): boolean {
  const wanted = least.split('.').map(Number)
  for (const [index, part] of version.entries()) {
    if (part !== (wanted[index] ?? 0)) return part > (wanted[index] ?? 0)
  }
  return true
}

/** @see Firecracker's CHANGELOG. */
export const capabilitiesOf = (version: Version): VmmCapabilities => ({
  states: ['full', 'diff'],
  // Its issue 6100: before, a host's connections hang after a pause and a resume.
  vsockAfterPause: isAtLeast(version, '1.17.0'),
  networkOverrides: isAtLeast(version, '1.12.0'),
  vsockOverride: isAtLeast(version, '1.16.0'),
  clockRealtime: isAtLeast(version, '1.16.0'),
})
