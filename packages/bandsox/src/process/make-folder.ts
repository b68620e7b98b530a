/** Makes a folder with those above it. Node's own way to do so never ends where the kernel lets nobody make any, as in /proc. */
import { existsSync } from 'node:fs'
import { mkdir, stat } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'

/**
 * @param mode Of those that are made.
 * @throws The system error, such as `ENOTDIR`, `EACCES` or, where nothing can be made, `ENOENT`.
 */
export async function makeFolder(folder: string, mode = 0o777): Promise<void> {
  if ((await tryToMake(folder, mode)) === undefined) return
  // When it is there, somebody may have made it since: the second try tells.
  if (!(await isThere(path.dirname(folder)))) await makeFolder(path.dirname(folder), mode)
  const refused = await tryToMake(folder, mode)
  if (refused !== undefined) throw refused
}

/** @returns The `ENOENT` that says that the one above it is missing, or takes no folder; undefined once the folder is there. */
async function tryToMake(folder: string, mode: number): Promise<Error | undefined> {
  try {
    await mkdir(folder, { mode })
  } catch (error) {
    if (error instanceof Error && isSystemError(error, 'ENOENT') && path.dirname(folder) !== folder) return error
    if (!isSystemError(error, 'EEXIST')) throw error
    if (!(await stat(folder)).isDirectory()) {
      throw Object.assign(new Error(`not a folder: ${folder}`), { code: 'ENOTDIR' })
    }
  }
  return undefined
}

async function isThere(folder: string): Promise<boolean> {
  try {
    return (await stat(folder)).isDirectory()
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return false
    throw error
  }
}

/** Those that are there already, as they are each time but the first, cost a look each. */
export async function makeFolders(folders: readonly string[]): Promise<void> {
  await Promise.all(folders.filter((folder) => !existsSync(folder)).map((folder) => makeFolder(folder)))
}
