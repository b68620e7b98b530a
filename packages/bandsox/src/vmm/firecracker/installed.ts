/** Where `bandsox init` puts Firecracker in the storage folder, and which one is there now. */
import { statSync } from 'node:fs'
import { join } from 'node:path'
import { BandSoxError } from '@bandsox/sdk'
import { z } from 'zod'
import { readJsonFile } from '../../process/json-file.js'

const HINT = 'fetch it again: bandsox init --force --skip-kernel --skip-image --skip-disk'

const versionSchema = z.string().regex(/^\d+\.\d+\.\d+$/)
const programSchema = z.object({ sha256: z.string().regex(/^[0-9a-f]{64}$/), sizeBytes: z.int().positive() })

/** `firecracker.json`: the version that new machines get. Others may lie beside it. */
const currentSchema = z.object({ version: z.literal(1), current: versionSchema })

/** `release.json` in a version's folder. */
const releaseSchema = z.object({
  version: z.literal(1),
  release: versionSchema,
  /** URL of the archive, without a user's name and password. */
  source: z.string(),
  archiveSha256: z.string(),
  installedAt: z.string(),
  programs: z.object({ firecracker: programSchema, jailer: programSchema.optional() }),
})
export type FirecrackerRelease = z.infer<typeof releaseSchema>
export type RecordedProgram = z.infer<typeof programSchema>

export interface InstalledFirecracker {
  /** Such as `1.16.1`. */
  version: string
  /** Paths of the programs. */
  firecracker: string
  /** Undefined when the release came without one. */
  jailer: string | undefined
}

export const RELEASE_FILE = 'release.json'

export const firecrackerFolders = (storage: string) => {
  const root = join(storage, 'vmm')
  return {
    root,
    current: join(root, 'firecracker.json'),
    nameOf: (version: string) => `firecracker-${version}`,
    directoryOf: (version: string) => join(root, `firecracker-${version}`),
  }
}

/**
 * The version that was installed last. Sizes are looked at, not digests: it is asked at every start.
 *
 * @returns undefined when none was installed.
 * @throws `artifact-damaged` naming the file.
 */
export async function findInstalledFirecracker(storage: string): Promise<InstalledFirecracker | undefined> {
  const manifest = await readJsonFile(firecrackerFolders(storage).current, currentSchema, HINT)
  if (manifest === undefined) return undefined
  const { current } = manifest
  const release = await readFirecrackerRelease(storage, current)
  const directory = firecrackerFolders(storage).directoryOf(current)
  if (release === undefined) {
    throw new BandSoxError('artifact-damaged', `Firecracker ${current} is missing in ${directory}`, { hint: HINT })
  }
  const { firecracker, jailer } = release.programs
  return {
    version: current,
    firecracker: checked(join(directory, 'firecracker'), firecracker),
    jailer: jailer === undefined ? undefined : checked(join(directory, 'jailer'), jailer),
  }
}

/** What was recorded about a version, whatever state its programs are in. @throws `artifact-damaged`. */
export const readFirecrackerRelease = (storage: string, version: string): Promise<FirecrackerRelease | undefined> =>
  readJsonFile(join(firecrackerFolders(storage).directoryOf(version), RELEASE_FILE), releaseSchema, HINT)

/** @returns The path. @throws `artifact-damaged` when the file is not there or has another size. */
function checked(path: string, { sizeBytes }: RecordedProgram): string {
  const found = statSync(path, { throwIfNoEntry: false })
  if (found?.size === sizeBytes) return path
  const what = found === undefined ? 'is missing' : `has ${found.size} bytes instead of ${sizeBytes}`
  throw new BandSoxError('artifact-damaged', `${path} ${what}`, { hint: HINT })
}
