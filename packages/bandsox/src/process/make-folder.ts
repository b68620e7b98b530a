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
  if (await isMade(folder, mode)) return
  await makeFolder(path.dirname(folder), mode)
  await mkdir(folder, { mode }).catch((error: unknown) => {
    if (!isSystemError(error, 'EEXIST')) throw error // another process was quicker
  })
}

/** @returns False when the one above it is missing. */
async function isMade(folder: string, mode: number): Promise<boolean> {
  try {
    await mkdir(folder, { mode })
    return true
  } catch (error) {
    if (isSystemError(error, 'EEXIST')) {
      if ((await stat(folder)).isDirectory()) return true
      throw Object.assign(new Error(`not a folder: ${folder}`), { code: 'ENOTDIR' })
    }
    if (!isSystemError(error, 'ENOENT') || path.dirname(folder) === folder) throw error
    return await isThere(path.dirname(folder)).then((there) => {
      if (there) throw error // it is not for lack of that one
      return false
    })
  }
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
