/** The folder that a Firecracker runs in, with all that it may reach: the root of its jail, or a folder of the VM's directory. */
import { chmodSync, chownSync, linkSync, mkdirSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { linkOrCopyProgram, linkState } from '../link-or-copy.js'
import type { MachineSpec, MachineState } from '../vmm.js'
import type { VmConfiguration } from './api/types.js'
import { folderFiles, instanceId } from './configuration.js'

/** Without a jail: a folder that the VM's user may write in, as Firecracker makes its sockets itself. */
const PLAIN = 'vmm'
/** The jailer's base: it makes JAIL/firecracker/ID/root of it. */
export const JAIL = 'jail'
const ALL_READ = 0o444

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

/** Of a jailed one, relative to the VM's directory. The jailer copies it, and takes its name for the jail's. */
export const JAILED_PROGRAM = path.join(JAIL, 'program', folderFiles.program)

/** What a Firecracker begins with: a machine to boot, or one to load. */
export type Beginning = { boot: VmConfiguration } | { load: MachineState }

/**
 * Makes the folder anew. What the machine has in the VM's directory is there by hard links: a file is never in two states. All of it at once:
 * a dozen changes of names, each of which takes ten times as long by the thread pool.
 *
 * @param program Firecracker, which is linked anew too: an upgrade is not to be missed.
 * @throws System errors. Nothing is left then.
 */
export async function makeFolder(
  spec: MachineSpec,
  folder: Folder,
  isJailed: boolean,
  program: string,
  beginning: Beginning,
): Promise<void> {
  const absolute = path.join(spec.directory, folder.path)
  const inside = (name: string) => path.join(absolute, name)
  const { kernel, initramfs, root, overlay } = spec.files
  const shared = 'boot' in beginning ? [kernel, initramfs, root, overlay] : [root, overlay]
  const programAt = isJailed ? path.join(spec.directory, JAILED_PROGRAM) : inside(folderFiles.program)
  await removeFolders(spec.directory)
  try {
    mkdirSync(absolute, { recursive: true, mode: 0o700 })
    mkdirSync(path.dirname(programAt), { recursive: true, mode: 0o700 })
    for (const name of shared) linkSync(path.join(spec.directory, name), inside(name))
    await linkOrCopyProgram(program, programAt)
    if ('boot' in beginning) {
      writeFileSync(inside(folderFiles.configuration), JSON.stringify(beginning.boot))
      chmodSync(inside(folderFiles.configuration), ALL_READ) // whatever this process's umask is
    } else {
      await linkState(beginning.load.devices, inside(folderFiles.devices))
      await linkState(beginning.load.memory, inside(folderFiles.memory))
    }
    // In a jail too, where the jailer would do it.
    if (process.getuid?.() === 0) chownSync(absolute, spec.uid, spec.uid)
  } catch (error) {
    await removeFolders(spec.directory)
    throw error
  }
}

/** Both: what a machine had before, jailed or not, is of no use to anybody. */
export async function removeFolders(directory: string): Promise<void> {
  for (const top of [JAIL, PLAIN]) rmSync(path.join(directory, top), { recursive: true, force: true })
}
