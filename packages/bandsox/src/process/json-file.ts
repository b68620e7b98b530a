/** Small JSON files that other processes read at any moment: whole or not there, checked against a schema. */
import { randomBytes } from 'node:crypto'
import { readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { open, readdir, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import type { z } from 'zod'

/** Replaces the file atomically, with mode 0600. */
export async function writeJsonFile(path: string, value: unknown): Promise<void> {
  const temporary = temporaryBeside(path)
  const file = await open(temporary, 'wx', 0o600)
  try {
    await file.writeFile(textOf(value))
    await file.sync()
    await file.close()
    await rename(temporary, path)
  } catch (error) {
    await file.close()
    await rm(temporary, { force: true })
    throw error
  }
}

/** The same for what nobody asks for after a loss of power, which may leave it empty: nothing has to wait for a disk. */
export function writePassingJsonFile(path: string, value: unknown): void {
  const temporary = temporaryBeside(path)
  try {
    writeFileSync(temporary, textOf(value), { flag: 'wx', mode: 0o600 })
    renameSync(temporary, path)
  } catch (error) {
    rmSync(temporary, { force: true })
    throw error
  }
}

const temporaryBeside = (path: string): string => `${path}.${randomBytes(4).toString('hex')}.tmp` // as UNFINISHED
const textOf = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`

/**
 * It is read at once: from memory, where small files that are used are, that takes a tenth of the way through the thread pool.
 *
 * @param hint What to do about a damaged file, where the usual one (build it anew) does not hold.
 * @returns undefined when the file is not there.
 * @throws `artifact-damaged` when it is not what it should be.
 */
export async function readJsonFile<S extends z.ZodType>(
  path: string,
  schema: S,
  hint?: string,
): Promise<z.infer<S> | undefined> {
  let content: string
  try {
    content = readFileSync(path, 'utf8')
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
  try {
    return schema.parse(JSON.parse(content))
  } catch (error) {
    const options = { cause: error, ...(hint !== undefined && { hint }) }
    throw new BandSoxError('artifact-damaged', `${path} is damaged, or was written by another version`, options)
  }
}

const UNFINISHED = /\.[0-9a-f]{8}\.tmp$/

/** Removes what writers have left in a folder that were killed at it. Nobody writes there meanwhile. */
export async function removeUnfinished(folder: string): Promise<void> {
  const names = await readdir(folder).catch((error: unknown) => {
    if (isSystemError(error, 'ENOENT')) return []
    throw error
  })
  for (const name of names) if (UNFINISHED.test(name)) await rm(join(folder, name), { force: true })
}
