/** A VM's user cannot reach into our home folder, so programs that it runs lie in the VM's own. */
import { chmod, copyFile, link } from 'node:fs/promises'
import { isSystemError } from '@bandsox/sdk'

/** One that is there already is left as it is. */
export async function linkOrCopyProgram(from: string, to: string): Promise<void> {
  try {
    await link(from, to)
  } catch (error) {
    if (isSystemError(error, 'EEXIST')) return
    if (!isSystemError(error, 'EXDEV') && !isSystemError(error, 'EPERM')) throw error
    await copyFile(from, to)
    await chmod(to, 0o755) // whatever this process's umask is
  }
}
