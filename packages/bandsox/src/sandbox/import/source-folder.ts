/**
 * A folder of somebody else's, to be read only: its files by their plain names, none of them through a symbolic link. Whoever can
 * write there must not make us read, or hang at, what lies outside.
 */
import { constants } from 'node:fs'
import { type FileHandle, lstat, open, opendir } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'

export class SourceFolder {
  readonly path: string
  readonly #handle: FileHandle

  private constructor(folder: string, handle: FileHandle) {
    this.path = folder
    this.#handle = handle
  }

  /** @throws `file-not-found`, `permission-denied`, `bad-request` for what is no folder, or a link to one. */
  static async open(folder: string): Promise<SourceFolder> {
    try {
      if ((await lstat(folder)).isSymbolicLink())
        throw new BandSoxError('bad-request', `${folder} is a symbolic link, and links are not followed there`)
      const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
      return new SourceFolder(folder, await open(folder, flags))
    } catch (error) {
      throw readError(error, folder)
    }
  }

  /**
   * The names in it.
   *
   * @throws `bad-request` when there are more than `limit`.
   */
  async names(limit: number): Promise<string[]> {
    const names: string[] = []
    try {
      for await (const { name } of await opendir(this.#held())) {
        names.push(name)
        if (names.length > limit)
          throw new BandSoxError(
            'bad-request',
            `${this.path} holds more than ${limit} files: it is not what it should be`,
          )
      }
    } catch (error) {
      throw readError(error, this.path)
    }
    return names.sort()
  }

  /**
   * Opens a regular file of the folder itself. The caller closes it.
   *
   * @returns undefined when there is none of this name.
   * @throws `bad-request` for what is no regular file; `permission-denied`.
   */
  async openFile(name: string): Promise<FileHandle | undefined> {
    const shown = path.join(this.path, name)
    if (name === '' || name === '.' || name === '..' || /[/\0]/.test(name))
      throw new BandSoxError('bad-request', `${JSON.stringify(name)} is not the name of a file`)
    const held = path.join(this.#held(), name)
    try {
      // Looked at before: to open a device may already do something.
      requireRegular(shown, await lstat(held))
      const handle = await open(held, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
      try {
        requireRegular(shown, await handle.stat())
        return handle
      } catch (error) {
        await handle.close()
        throw error
      }
    } catch (error) {
      if (isSystemError(error, 'ENOENT')) return undefined
      throw readError(error, shown)
    }
  }

  /**
   * @returns undefined when there is no such file.
   * @throws As `openFile`; `bad-request` for a file of more than `limit` bytes.
   */
  async readText(name: string, limit: number): Promise<string | undefined> {
    const handle = await this.openFile(name)
    if (handle === undefined) return undefined
    try {
      // One byte more than allowed: it may grow while we look.
      const { bytesRead, buffer } = await handle.read(Buffer.alloc(Math.min((await handle.stat()).size, limit) + 1))
      if (bytesRead > limit) throw new BandSoxError('bad-request', `it is larger than ${limit} bytes`)
      return buffer.toString('utf8', 0, bytesRead)
    } finally {
      await handle.close()
    }
  }

  async close(): Promise<void> {
    await this.#handle.close()
  }

  /** The folder that was opened, whatever stands under its name now. */
  #held(): string {
    return `/proc/self/fd/${this.#handle.fd}`
  }
}

function requireRegular(shown: string, stats: { isFile(): boolean; isSymbolicLink(): boolean }): void {
  if (stats.isFile()) return
  const what = stats.isSymbolicLink() ? 'a symbolic link, which is not followed' : 'not a regular file'
  throw new BandSoxError('bad-request', `${shown} is ${what}`)
}

function readError(error: unknown, shown: string): unknown {
  if (error instanceof BandSoxError) return error
  const refused = isSystemError(error, 'EACCES') || isSystemError(error, 'EPERM')
  const code = refused ? 'permission-denied' : isSystemError(error, 'ENOENT') ? 'file-not-found' : 'bad-request'
  return new BandSoxError(code, `cannot read ${shown}: ${messageOf(error)}`, {
    cause: error,
    ...(refused && { hint: 'run it as the user whom it belongs to, or as root' }),
  })
}
