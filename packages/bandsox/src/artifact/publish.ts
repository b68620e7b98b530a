/** Makes files and folders under a temporary name beside their target and renames them when finished: all or nothing. */
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, open, readdir, rename, rm } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { isSystemError } from '@bandsox/sdk'
import { identify } from '../process/identity.js'

/** `.making-<pid>-<start time of the process>-<random>`: tells a later run whether its maker still lives. */
const UNFINISHED = /^\.making-(\d+)-(\d+)-/

/**
 * Makes a folder in `parent`. When two processes make the same one, the first to finish wins and the other's is thrown away.
 *
 * @param make Fills the folder and returns the name that it gets, so that a name can hold a digest of the content.
 * @param isIntact Asked about a folder that has the name already: a damaged one is replaced.
 * @returns Path of the finished folder.
 */
export async function publishDirectory(
  parent: string,
  make: (directory: string) => Promise<string>,
  isIntact: (directory: string) => Promise<boolean>,
): Promise<string> {
  return withWorkDirectory(parent, async (unfinished) => {
    const target = join(parent, await make(unfinished))
    const handle = await open(unfinished, 'r')
    try {
      // mkdtemp makes 0700; what is finished is read by the unprivileged users that VMs run as.
      await handle.chmod(0o755)
      await handle.sync()
    } finally {
      await handle.close()
    }
    if (await moved(unfinished, target)) return target
    if (!(await isIntact(target))) {
      await removeDirectory(target)
      await moved(unfinished, target)
    }
    return target
  })
}

/** False when there is such a folder already. */
async function moved(directory: string, target: string): Promise<boolean> {
  try {
    await rename(directory, target)
    return true
  } catch (error) {
    if (isSystemError(error, 'ENOTEMPTY') || isSystemError(error, 'EEXIST')) return false
    throw error
  }
}

/** Makes a file; an existing one is replaced in one step, so readers see the old or the new one whole. */
export async function publishFile<T>(target: string, make: (path: string) => Promise<T>): Promise<T> {
  await mkdir(dirname(target), { recursive: true })
  const unfinished = join(dirname(target), `${await unfinishedPrefix()}${randomBytes(6).toString('hex')}`)
  try {
    const result = await make(unfinished)
    await rename(unfinished, target)
    return result
  } finally {
    await rm(unfinished, { force: true })
  }
}

/** Writes a manifest atomically and durably. */
export async function publishJson(target: string, value: unknown): Promise<void> {
  await publishFile(target, async (path) => {
    const handle = await open(path, 'wx', 0o644)
    try {
      await handle.writeFile(`${JSON.stringify(value, undefined, 2)}\n`)
      await handle.sync()
    } finally {
      await handle.close()
    }
  })
}

/** Runs `use` with a folder beside the finished artifacts (so that renames stay on one file system) and removes it. */
export async function withWorkDirectory<T>(parent: string, use: (directory: string) => Promise<T>): Promise<T> {
  const { directory, remove } = await makeWorkDirectory(parent)
  try {
    return await use(directory)
  } finally {
    await remove()
  }
}

/** The same for a longer time: whoever makes it removes it, and {@link removeAbandoned} does when its maker was killed. */
export async function makeWorkDirectory(parent: string): Promise<{ directory: string; remove: () => Promise<void> }> {
  await mkdir(parent, { recursive: true })
  const directory = await mkdtemp(join(parent, await unfinishedPrefix()))
  return { directory, remove: () => rm(directory, { recursive: true, force: true }) }
}

/** Removes what killed processes left unfinished in a folder. */
export async function removeAbandoned(directory: string): Promise<void> {
  const names = await readdir(directory).catch((error: unknown) => {
    if (isSystemError(error, 'ENOENT')) return []
    throw error
  })
  for (const name of names) {
    const maker = UNFINISHED.exec(name)
    if (maker === null || String((await identify(Number(maker[1])))?.startTime) === maker[2]) continue
    // Retried, since a command that the dead process started may still be writing there.
    await rm(join(directory, name), { recursive: true, force: true, maxRetries: 10 })
  }
}

const unfinishedPrefix = async (): Promise<string> =>
  `.making-${process.pid}-${(await identify(process.pid))?.startTime}-`

/** Renamed first: a half-removed folder must not be found under its name. */
async function removeDirectory(target: string): Promise<void> {
  const grave = join(
    dirname(target),
    `${await unfinishedPrefix()}${basename(target)}-${randomBytes(6).toString('hex')}`,
  )
  try {
    await rename(target, grave)
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return
    throw error
  }
  await rm(grave, { recursive: true, force: true })
}
