/** Makes a whole state of one and of what has changed since. */
import { chmod, copyFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { runCommand } from '../../process/run.js'
import { requireRoom } from '../state-folder.js'
import type { MachineState } from '../vmm.js'
import { folderFiles } from './configuration.js'

const OWNER_WRITES = 0o600
const ALL_READ = 0o444

/**
 * @param base Stays as it is, since machines may run on it: its memory is copied, by reference where the file system can.
 * @param diffs The first is of a machine that was loaded from `base`, or that `base` was saved of; each further one of such a one of the one before.
 * @throws `command-failed` when they do not belong together; system errors such as `ENOSPC`; `signal.reason`. Nothing is left then.
 */
export async function mergeState(
  shimPath: string,
  base: MachineState,
  diffs: readonly [MachineState, ...MachineState[]],
  folder: string,
  signal?: AbortSignal,
): Promise<MachineState> {
  const { devices, memory } = folderFiles
  await requireRoom(folder, [devices, memory])
  const merged = { devices: path.join(folder, devices), memory: path.join(folder, memory) }
  try {
    const options = signal === undefined ? {} : { signal }
    await runCommand(['cp', '--reflink=auto', '--sparse=always', '--', base.memory, merged.memory], options)
    await chmod(merged.memory, OWNER_WRITES)
    for (const { memory: changed } of diffs) await runCommand([shimPath, 'apply', merged.memory, changed], options)
    await copyFile(diffs.at(-1)?.devices ?? base.devices, merged.devices)
    for (const file of [merged.memory, merged.devices]) await chmod(file, ALL_READ)
    return merged
  } catch (error) {
    for (const file of [merged.memory, merged.devices]) await rm(file, { force: true })
    throw error
  }
}
