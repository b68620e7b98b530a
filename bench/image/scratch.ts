/** A folder beside the storage, so that files can be linked into it, and the same disk is measured that sandboxes are on. */
import { chmod, mkdtemp, rm } from 'node:fs/promises'
import path from 'node:path'
import { readConfig } from '../internals.js'

export async function scratchFolder(): Promise<{ folder: string } & AsyncDisposable> {
  const folder = await mkdtemp(path.join(readConfig().storage, 'bench-'))
  await chmod(folder, 0o711)
  return { folder, [Symbol.asyncDispose]: () => rm(folder, { recursive: true, force: true }) }
}
