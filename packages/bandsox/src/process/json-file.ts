/** Small JSON files that other processes read at any moment: whole or not there, checked against a schema. */
import { randomBytes } from 'node:crypto'
import { open, readFile, rename, rm } from 'node:fs/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import type { z } from 'zod'

/** Replaces the file atomically and durably, with mode 0600. */
export async function writeJsonFile(path: string, value: unknown): Promise<void> {
  const temporary = `${path}.${randomBytes(4).toString('hex')}.tmp`
  const file = await open(temporary, 'wx', 0o600)
  try {
    await file.writeFile(`${JSON.stringify(value, null, 2)}\n`)
    await file.sync()
    await file.close()
    await rename(temporary, path)
  } catch (error) {
    await file.close()
    await rm(temporary, { force: true })
    throw error
  }
}

/** @returns undefined when the file is not there. @throws `artifact-damaged` when it is not what it should be. */
export async function readJsonFile<S extends z.ZodType>(path: string, schema: S): Promise<z.infer<S> | undefined> {
  let content: string
  try {
    content = await readFile(path, 'utf8')
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
  try {
    return schema.parse(JSON.parse(content))
  } catch (error) {
    throw new BandSoxError('artifact-damaged', `${path} is not readable as what it should be`, {
      cause: error,
      hint: 'it was damaged or written by another version: remove it, or the sandbox that it belongs to',
    })
  }
}
