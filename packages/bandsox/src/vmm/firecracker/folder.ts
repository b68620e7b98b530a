/** The folder that a Firecracker runs in, with all that it may reach: the root of its jail, or a folder of the VM's directory. */
import { chown, link, mkdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'
import { linkOrCopyProgram } from '../link-or-copy.js'
import type { MachineSpec, MachineState } from '../vmm.js'
import type { VmConfiguration } from './api/types.js'
import { folderFiles, instanceId } from './configuration.js'

/** Without a jail: a folder that the VM's user may write in, as Firecracker makes its sockets itself. */
const PLAIN = 'vmm'
/** The jailer's base: it makes JAIL/firecracker/ID/root of it. */
export const JAIL = 'jail'
const MAY_READ = 0o444

export interface Folder {
  /** Relative to the VM's directory. */
  path: string
  /** What is removed at the end, relative too. */
  top: string
}

export const folderOf = (spec: MachineSpec, isJailed: boolean): Folder =>
  isJailed
    ? { path: path.join(JAIL, folderFiles.program, instanceId(spec.sandboxId), 'root'), top: JAIL }
    : { path: PLAIN, top: PLAIN }

/** What a Firecracker begins with: a machine to boot, or one to load. */
export type Beginning = { boot: VmConfiguration } | { load: MachineState }

/**
 * Makes the folder anew. What the machine has in the VM's directory is there by hard links: a file is never in two states.
 *
 * @param isJailed The jailer copies the program itself.
 */
export async function makeFolder(
  spec: MachineSpec,
  folder: Folder,
  isJailed: boolean,
  program: string,
  beginning: Beginning,
) {
  const absolute = path.join(spec.directory, folder.path)
  // Of a start whose shim was killed before it could remove it.
  await rm(path.join(spec.directory, folder.top), { recursive: true, force: true })
  await mkdir(absolute, { recursive: true, mode: 0o700 })
  const inside = (name: string) => path.join(absolute, name)
  const { kernel, initramfs, root, overlay } = spec.files
  const shared = 'boot' in beginning ? [kernel, initramfs, root, overlay] : [root, overlay]
  await Promise.all([
    ...shared.map((name) => link(path.join(spec.directory, name), inside(name))),
    // Where the jailer is to find it too: it takes a file's own name for the jail's.
    linkOrCopyProgram(program, isJailed ? path.join(spec.directory, folderFiles.program) : inside(folderFiles.program)),
    ...('boot' in beginning
      ? [writeFile(inside(folderFiles.configuration), JSON.stringify(beginning.boot), { mode: MAY_READ })]
      : [
          linkState(beginning.load.devices, inside(folderFiles.devices)),
          linkState(beginning.load.memory, inside(folderFiles.memory)),
        ]),
  ])
  // In a jail too, where the jailer would do it: Firecracker is told of no other folder.
  if (process.getuid?.() === 0) await chown(absolute, spec.uid, spec.uid)
}

/** A state that many machines are loaded from: all map the same pages of the host's memory. */
async function linkState(from: string, to: string): Promise<void> {
  try {
    await link(from, to)
  } catch (error) {
    if (!isSystemError(error, 'EXDEV')) throw error
    const { copyFile, constants } = await import('node:fs/promises')
    await copyFile(from, to, constants.COPYFILE_FICLONE)
  }
}
