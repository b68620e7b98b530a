/** What a VM's directory has of files that lie elsewhere: by hard links, or where those cannot be, copies. */
import { constants, linkSync } from 'node:fs'
import { chmod, copyFile } from 'node:fs/promises'
import { isSystemError } from '@bandsox/sdk'

const ALL_READ = 0o444

/** A VM's user cannot reach into our home folder, so programs that it runs lie in the VM's own. One that is there already is left as it is. */
export async function linkOrCopyProgram(from: string, to: string): Promise<void> {
  try {
    linkSync(from, to)
  } catch (error) {
    if (isSystemError(error, 'EEXIST')) return
    if (!isSystemError(error, 'EXDEV') && !isSystemError(error, 'EPERM')) throw error
    await copyFile(from, to)
    await chmod(to, 0o755) // whatever this process's umask is
  }
}

/** A file of a state that many machines are loaded from: all map the same pages of the host's memory. */
export async function linkState(from: string, to: string): Promise<void> {
  try {
    linkSync(from, to)
  } catch (error) {
    if (!isSystemError(error, 'EXDEV')) throw error
    await copyFile(from, to, constants.COPYFILE_FICLONE)
    await chmod(to, ALL_READ)
  }
}
