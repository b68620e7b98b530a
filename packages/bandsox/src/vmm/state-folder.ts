/** The folder that a state is put into. */
import { readdir } from 'node:fs/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'

/** @throws `file-not-found` without the folder, `bad-request` where a state is in it. */
export async function requireRoom(folder: string, names: readonly string[]): Promise<void> {
  const present = await readdir(folder).catch((error: unknown) => {
    if (!isSystemError(error, 'ENOENT') && !isSystemError(error, 'ENOTDIR')) throw error
    throw new BandSoxError('file-not-found', `cannot save a state into ${folder}: there is no such folder`, {
      cause: error,
    })
  })
  if (names.some((name) => present.includes(name)))
    throw new BandSoxError('bad-request', `cannot save a state into ${folder}: there is one in it already`, {
      hint: 'use an empty folder',
    })
}
