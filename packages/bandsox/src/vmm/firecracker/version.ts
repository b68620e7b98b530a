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
  const [, version] = /Firecracker v(\S+)/.exec(versionText) ?? []
  const number = version === undefined ? undefined : versionNumber(version)
  if (version === undefined || number === undefined)
    throw new BandSoxError(
      'host-unsupported',
      `cannot tell Firecracker's version from ${JSON.stringify(versionText.slice(0, 80))}`,
      { hint: 'BANDSOX_FIRECRACKER is to name a firecracker of the project’s releases' },
    )
  if (isAtLeast(number, OLDEST_FIRECRACKER)) return { version, number }
  throw new BandSoxError(
    'host-unsupported',
    `Firecracker ${version} is too old: ${OLDEST_FIRECRACKER} or newer is needed`,
    {
      hint: 'fetch a newer one: bandsox init',
    },
  )
}

/** @param version As Firecracker tells it: `1.17.0-dev`. @returns undefined for what is none. */
export function versionNumber(version: string): Version | undefined {
  const [, major, minor, patch] = /^(\d+)\.(\d+)\.(\d+)/.exec(version) ?? []
  return patch === undefined ? undefined : [Number(major), Number(minor), Number(patch)]
}

/** @param least As `1.16.0`. */
export function isAtLeast(version: Version, least: string): boolean {
  const wanted = least.split('.').map(Number)
  for (const [index, part] of version.entries()) {
    if (part !== (wanted[index] ?? 0)) return part > (wanted[index] ?? 0)
  }
  return true
}

/**
 * Whether vsock hangs after a pause and a resume, but not when a state was saved in between (Firecracker's issue 6100, of 1.16): it waits
 * for the guest to have heard of a reset that only saving tells it of.
 */
export const losesVsockAtPause = (version: Version): boolean =>
  isAtLeast(version, '1.16.0') && !isAtLeast(version, '1.17.0')

/** What loads a state takes it by this name, since which release. */
export const tracksDirtyPagesByName = (version: Version): boolean => isAtLeast(version, '1.13.0')

/** @see Firecracker's CHANGELOG. */
export const capabilitiesOf = (version: Version): VmmCapabilities => ({
  states: ['full', 'diff'],
  vsockAfterPause: true, // by the remedy below, where it is needed
  networkOverrides: isAtLeast(version, '1.12.0'),
  vsockOverride: isAtLeast(version, '1.16.0'),
  clockRealtime: isAtLeast(version, '1.16.0'),
  diskLayers: false, // its disks are raw
})
