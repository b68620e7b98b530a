/** Gets a release of Firecracker and puts its programs into the storage folder: whole and verified, or not at all. */
import { open, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { pathToFileURL } from 'node:url'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import { shown } from '../../artifact/download.js'
import { publishDirectory, publishJson, removeAbandoned } from '../../artifact/publish.js'
import { digestFile } from '../../artifact/recorded-file.js'
import {
  type FirecrackerRelease,
  findInstalledFirecracker,
  firecrackerFolders,
  type InstalledFirecracker,
  RELEASE_FILE,
  readFirecrackerRelease,
} from '../../vmm/firecracker/installed.js'
import { downloadsFolder, type Fetching, publishedChecksum, withDownload } from './downloads.js'
import { checkSha256, locateRelease, type ReleaseLocation, type ReleaseRequest } from './firecracker-release.js'
import { extractPrograms } from './release-archive.js'

/** Release 1.16.1 has some 20 MiB. */
const MAX_ARCHIVE_BYTES = 256 * 1024 ** 2

export interface InstallRequest extends ReleaseRequest {
  /** That the archive must have; default: what is published beside it. */
  sha256?: string | undefined
  /** Fetches it though it is there. */
  force?: boolean | undefined
}

export interface Installation {
  installed: InstalledFirecracker
  made: boolean
}

/**
 * Makes this version the one that new machines get. With nothing to do it asks nobody.
 *
 * @throws `bad-request`; `host-unsupported`; `checksum-mismatch`; `artifact-damaged` for an archive that is not usable; `no-space`;
 *   `file-not-found` or `host-missing`, with a hint of what to place where, when the archive or its checksum cannot be had;
 *   `signal.reason`.
 */
export async function installFirecracker(request: InstallRequest, fetching: Fetching): Promise<Installation> {
  const location = locateRelease(request)
  const wanted = request.sha256 === undefined ? undefined : checkSha256(request.sha256, '--firecracker-sha256')
  const { storage } = fetching
  const { version } = location
  if (request.force !== true && (await isInstalled(storage, version, wanted))) {
    return await makeCurrent(storage, version, false)
  }
  return await explained(location, storage, async () => {
    const candidates = wanted === undefined ? [await findVouched(location, fetching)] : vouchedBy(wanted, location)
    return await firstThere(candidates, (candidate) => fetchAndUnpack(candidate, location, request.force, fetching))
  })
}

/** Where an archive may be, and what it is known by. */
interface Candidate {
  url: URL
  sha256: string
}

const vouchedBy = (sha256: string, { archives }: ReleaseLocation): Candidate[] =>
  archives.map((url) => ({ url, sha256 }))

/** The first place with a checksum beside the archive: what nobody vouches for is not fetched. */
async function findVouched({ archives }: ReleaseLocation, fetching: Fetching): Promise<Candidate> {
  for (const url of archives) {
    const sha256 = await publishedChecksum(url, fetching)
    if (sha256 !== undefined) return { url, sha256 }
  }
  const places = archives.map((url) => `${shown(url)}.sha256.txt`).join(', or ')
  throw new BandSoxError('file-not-found', `no checksum is published for it: there is no ${places}`, {
    hint: 'give the checksum, from a source that you trust: --firecracker-sha256 HEX',
  })
}

async function firstThere<T>(candidates: Candidate[], use: (candidate: Candidate) => Promise<T>): Promise<T> {
  let missing: unknown
  for (const candidate of candidates) {
    try {
      return await use(candidate)
    } catch (error) {
      if (!(error instanceof BandSoxError) || error.code !== 'file-not-found') throw error
      missing ??= error // the place that it usually has
    }
  }
  throw missing
}

async function fetchAndUnpack(
  candidate: Candidate,
  location: ReleaseLocation,
  force: boolean | undefined,
  fetching: Fetching,
): Promise<Installation> {
  const { storage } = fetching
  const { version } = location
  const { sha256 } = candidate
  const name = `firecracker-${sha256}.tgz`
  return await withDownload(
    { ...candidate, name, maxBytes: MAX_ARCHIVE_BYTES, isFresh: force === true },
    fetching,
    async () => {
      if (force === true || !(await isInstalled(storage, version, sha256))) return undefined
      return await makeCurrent(storage, version, false)
    },
    async (path) => {
      try {
        await unpack(path, location, candidate, fetching)
      } finally {
        await rm(path, { force: true }) // worth keeping of it are two programs
      }
      return await makeCurrent(storage, version, true)
    },
  )
}

/** @param archiveSha256 Default: any. */
async function isInstalled(storage: string, version: string, archiveSha256: string | undefined): Promise<boolean> {
  try {
    const release = await readFirecrackerRelease(storage, version)
    if (release === undefined || (archiveSha256 !== undefined && release.archiveSha256 !== archiveSha256)) return false
    return await isIntact(storage, release)
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'artifact-damaged') return false
    throw error
  }
}

/** By digests: some tens of ms, and whoever runs init wants to know. */
async function isIntact(storage: string, { release, programs }: FirecrackerRelease): Promise<boolean> {
  const directory = firecrackerFolders(storage).directoryOf(release)
  for (const name of ['firecracker', 'jailer'] as const) {
    const recorded = programs[name]
    if (recorded === undefined) continue
    const path = join(directory, name)
    // Else it is missing, or no program any more: made anew, as one with another digest is.
    const isProgram = ((await modeOf(path)) ?? 0) & 0o111
    if (!isProgram || (await digestFile(path)) !== recorded.sha256) return false
  }
  return true
}

async function modeOf(path: string): Promise<number | undefined> {
  try {
    return (await stat(path)).mode
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}

async function makeCurrent(storage: string, version: string, made: boolean): Promise<Installation> {
  const { current } = firecrackerFolders(storage)
  if ((await currentVersion(storage)) !== version) await publishJson(current, { version: 1, current: version })
  const installed = await findInstalledFirecracker(storage)
  if (installed === undefined) throw new BandSoxError('artifact-damaged', `${current} was removed meanwhile`)
  return { installed, made }
}

async function currentVersion(storage: string): Promise<string | undefined> {
  try {
    return (await findInstalledFirecracker(storage))?.version
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'artifact-damaged') return undefined // it is written anew
    throw error
  }
}

async function unpack(
  archive: string,
  { version, programs: wanted }: ReleaseLocation,
  { url, sha256 }: Candidate,
  { storage, signal }: Fetching,
): Promise<void> {
  const { root, nameOf } = firecrackerFolders(storage)
  await removeAbandoned(root)
  const make = async (directory: string): Promise<string> => {
    const { programs, others } = await extractPrograms({ archive, wanted, directory, signal })
    const { firecracker, jailer } = programs
    if (firecracker === undefined) {
      const instead = others.length === 0 ? 'and nothing like it' : `but ${others.join(', ')}`
      throw new BandSoxError('artifact-damaged', `${shown(url)} has no ${wanted.firecracker}, ${instead}`, {
        hint: 'name the version and the archive of a release: --firecracker-version, --firecracker-url',
      })
    }
    const release: FirecrackerRelease = {
      version: 1,
      release: version,
      source: shown(url),
      archiveSha256: sha256,
      installedAt: new Date().toISOString(),
      programs: { firecracker, ...(jailer !== undefined && { jailer }) },
    }
    await publishJson(join(directory, RELEASE_FILE), release)
    return nameOf(version)
  }
  // One that is there is another's, or damaged: only the same programs of the same archive stay.
  await publishDirectory(root, make, () => isInstalled(storage, version, sha256))
  await syncFolder(root)
}

/** Else a loss of power could leave `firecracker.json`, which is written next, without what it names. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder, 'r')
  try {
    await handle.sync()
  } finally {
    await handle.close()
  }
}

/** Whoever cannot get it is told what to place where. */
async function explained<T>(
  { archiveName, archives, version }: ReleaseLocation,
  storage: string,
  work: () => Promise<T>,
): Promise<T> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof BandSoxError) || !isOfFetching(error)) throw error
    const origin = archives.map(shown).find((url) => !url.startsWith('file:'))
    const folder = join(downloadsFolder(storage), 'offline')
    const hint = [
      error.code === 'file-not-found' && error.hint !== undefined ? `${error.hint}; or ` : 'without the network: ',
      `place ${archiveName} and ${archiveName}.sha256.txt${origin === undefined ? '' : ` (they are at ${origin})`} in a folder, `,
      `such as ${folder}, and: bandsox init --firecracker-version ${version} --firecracker-url ${pathToFileURL(folder).href}; `,
      'or leave it out: --skip-firecracker',
    ].join('')
    throw new BandSoxError(error.code, `cannot get Firecracker ${version}: ${messageOf(error)}`, { cause: error, hint })
  }
}

const isOfFetching = ({ code }: BandSoxError): boolean => code === 'file-not-found' || code === 'host-missing'
