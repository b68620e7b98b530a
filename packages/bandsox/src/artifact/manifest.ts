/** Reads a JSON manifest that this product wrote. */
import { readFile } from 'node:fs/promises'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import type * as z from 'zod'

/**
 * @returns The manifest, or `undefined` when there is none.
 * @throws `artifact-damaged` when it is not what its schema says.
 */
export async function readManifest<S extends z.ZodType>(path: string, schema: S): Promise<z.infer<S> | undefined> {
  let text: string
  try {
    text = await readFile(path, 'utf8')
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
  try {
    return schema.parse(JSON.parse(text))
  } catch (error) {
    throw new BandSoxError('artifact-damaged', `cannot read ${path}: ${messageOf(error)}`, { cause: error })
  }
}
