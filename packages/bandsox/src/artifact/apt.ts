/** Fetches packages through apt without installing them: no root needed, and apt checks their signatures. */
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError } from '@bandsox/sdk'
import { runCommand } from '../process/run.js'

const STALE_LISTS_HINT = 'the package lists may be missing or old: sudo apt-get update'

/** Fields of an entry of apt's package list, see deb-control(5). */
interface Package {
  name: string
  version: string
  depends: string[]
}

/** Parses one entry as `apt-cache show` prints it; of alternatives in `Depends` only the first is taken. */
export function parsePackage(text: string): Package {
  const field = (name: string) => new RegExp(`^${name}: (.*)$`, 'm').exec(text)?.[1] ?? ''
  const names = field('Depends')
    .split(',')
    .map((each) => each.trim().split(/[ |:(]/)[0] ?? '')
  return { name: field('Package'), version: field('Version'), depends: names.filter((name) => name !== '') }
}

/**
 * Follows a meta package through the dependencies that start with one of `prefixes`.
 *
 * @returns The packages that hold files, as apt's `name=version`.
 * @throws `host-missing` when apt does not know the package.
 */
export async function resolvePackages(
  metaPackage: string,
  prefixes: readonly string[],
  signal?: AbortSignal,
): Promise<string[]> {
  const found = new Map<string, Package>()
  const follow = async (name: string): Promise<void> => {
    if (found.has(name)) return
    const described = await showPackage(name, signal)
    found.set(name, described)
    for (const next of described.depends) if (prefixes.some((prefix) => next.startsWith(prefix))) await follow(next)
  }
  await follow(metaPackage)
  found.delete(metaPackage)
  return [...found.values()].map(({ name, version }) => `${name}=${version}`)
}

async function showPackage(name: string, signal?: AbortSignal): Promise<Package> {
  try {
    const { stdout } = await runCommand(
      ['apt-cache', 'show', '--no-all-versions', name],
      signal === undefined ? {} : { signal },
    )
    return parsePackage(stdout)
  } catch (error) {
    if (!(error instanceof BandSoxError) || error.code !== 'command-failed') throw error
    throw new BandSoxError('host-missing', `apt knows no package ${name}`, { cause: error, hint: STALE_LISTS_HINT })
  }
}

/** Downloads packages (`name=version`) into a folder and returns the paths of the `.deb` files. */
export async function downloadPackages(
  packages: readonly string[],
  directory: string,
  signal?: AbortSignal,
): Promise<string[]> {
  // As root, apt would hand the download to its user _apt, who cannot write here, and warn about it.
  const argv = ['apt-get', '-q', '-o', 'APT::Sandbox::User=root', 'download', ...packages]
  try {
    await runCommand(argv, { cwd: directory, ...(signal === undefined ? {} : { signal }) })
  } catch (error) {
    if (!(error instanceof BandSoxError) || error.code !== 'command-failed') throw error
    const what = `cannot download ${packages.join(' ')}: ${error.message}`
    throw new BandSoxError('command-failed', what, { cause: error, hint: STALE_LISTS_HINT })
  }
  return (await readdir(directory)).filter((name) => name.endsWith('.deb')).map((name) => join(directory, name))
}

/**
 * Unpacks a `.deb` into a folder. All of it, since which modules are needed is known only from the modules themselves: a
 * second for Debian's cloud kernel, most of it decompression.
 */
export async function unpackPackage(deb: string, directory: string, signal?: AbortSignal): Promise<void> {
  await runCommand(['dpkg-deb', '--extract', deb, directory], signal === undefined ? {} : { signal })
}
