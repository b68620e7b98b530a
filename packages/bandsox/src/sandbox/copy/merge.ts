/** Moves a staged file or folder to where it shall be, into a folder that is there already as `cp -r` does. */
import type { Stats } from 'node:fs'
import { chmod, lstat, readdir, rename, stat } from 'node:fs/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { hostError, shown } from './host-error.js'

/** Looks for all that could be in the way. @throws `file-error`; nothing was changed. */
export async function requireMergeable(from: Buffer, to: Buffer): Promise<void> {
  const [staged, there] = [await lstat(from), await look(to)]
  if (there === undefined) return
  const name = shown(to.toString('latin1'))
  if (staged.isDirectory() && !there.isDirectory())
    throw new BandSoxError('file-error', `cannot copy a folder to ${name}: something else is there`)
  if (!staged.isDirectory() && there.isDirectory())
    throw new BandSoxError('file-error', `cannot copy a file to ${name}: a folder is there`)
  if (!staged.isDirectory()) return
  if (there.dev !== staged.dev)
    throw new BandSoxError(
      'file-error',
      `cannot copy to ${name} as a part of a larger copy: another file system is there`,
    )
  for (const each of await children(from)) await requireMergeable(within(from, each), within(to, each))
}

/** A folder that is there keeps its own attributes. A link in the place of a file is replaced, not followed. */
export async function mergeInto(from: Buffer, to: Buffer): Promise<void> {
  const [staged, there] = [await lstat(from), await look(to)]
  if (staged.isDirectory() && there?.isDirectory()) {
    await chmod(from, 0o700) // it gives its own away; the folder that is there keeps its mode
    for (const each of await children(from)) await mergeInto(within(from, each), within(to, each))
    return
  }
  try {
    await move(from, to, staged)
  } catch (error) {
    throw hostError(error, `put ${shown(to.toString('latin1'))} in its place`)
  }
}

/** A folder's `..` changes when it moves, for which an ordinary user needs the right to write in it. */
async function move(from: Buffer, to: Buffer, staged: Stats): Promise<void> {
  const isLocked = staged.isDirectory() && (staged.mode & 0o200) === 0
  if (isLocked) await chmod(from, staged.mode | 0o200)
  await rename(from, to)
  if (isLocked) await chmod(to, staged.mode)
}

const within = (folder: Buffer, name: Buffer): Buffer => Buffer.concat([folder, Buffer.from('/'), name])

const children = (folder: Buffer): Promise<Buffer[]> => readdir(folder, { encoding: 'buffer' })

async function look(file: Buffer): Promise<Stats | undefined> {
  try {
    return await lstat(file)
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw hostError(error, `look at ${shown(file.toString('latin1'))}`)
  }
}

/** Follows links: who names one means what it leads to. */
export async function isFolder(file: string): Promise<boolean | undefined> {
  try {
    return (await stat(file)).isDirectory()
  } catch (error) {
    if (isSystemError(error, 'ENOENT') || isSystemError(error, 'ENOTDIR')) return undefined
    throw hostError(error, `look at ${file}`)
  }
}
