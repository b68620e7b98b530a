/** The files of a state in a VM's directory: those that the machine was loaded from, and those that it was saved into last. */
import { chmod, chown, mkdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'
import { runCommand } from '../../process/run.js'
import { linkState } from '../link-or-copy.js'
import type { MachineState } from '../vmm.js'

export const STATE_FILES = { devices: 'devices', memory: 'memory' } as const

/** What the machine was loaded from; it maps its memory from there. */
export const LOADED_FOLDER = 'loaded'
/**
 * What a machine that stands still was saved into last. QEMU saves a state only once until the machine has run again: whoever asks before
 * gets the same.
 */
const SAVED_FOLDER = 'saved'
/** Whoever knows what is in it gets there. */
const BY_NAME = 0o711
/** A copy of its memory, where the machine must share what it maps with another process. */
const SHARED_FOLDER = 'shared'
/** Of every machine, as each can be saved. */
export const STATE_FOLDERS = [LOADED_FOLDER, SAVED_FOLDER, SHARED_FOLDER]

export const SHARED_MEMORY = `${SHARED_FOLDER}/${STATE_FILES.memory}`

export const loadedFiles = {
  devices: `${LOADED_FOLDER}/${STATE_FILES.devices}`,
  memory: `${LOADED_FOLDER}/${STATE_FILES.memory}`,
}

export const stateIn = (folder: string): MachineState => ({
  devices: path.join(folder, STATE_FILES.devices),
  memory: path.join(folder, STATE_FILES.memory),
})

/** By hard links. No VM's user may enter the folder: VMM and shim have the files by their descriptors. */
export async function linkLoaded(directory: string, state: MachineState): Promise<void> {
  await removeLoaded(directory)
  await linkInto(path.join(directory, LOADED_FOLDER), state)
}

export async function removeLoaded(directory: string): Promise<void> {
  for (const folder of [LOADED_FOLDER, SHARED_FOLDER])
    await rm(path.join(directory, folder), { recursive: true, force: true })
}

/** A memory of the machine's own, which its user may write to: its blocks are shared where the file system can, else it is a sparse copy. */
export async function copyMemory(directory: string, memory: string, uid: number): Promise<void> {
  const [folder, copy] = [path.join(directory, SHARED_FOLDER), path.join(directory, SHARED_MEMORY)]
  await mkdir(folder, { mode: 0o700 })
  await runCommand(['cp', '--reflink=auto', '--sparse=always', '--', memory, copy])
  await chmod(copy, 0o600)
  if (process.getuid?.() !== 0) return
  await chown(copy, uid, uid)
  await chmod(folder, BY_NAME) // it is ours: what a VMM that was taken over could put there, we would find
}

/** It holds on to the files, not to their names: they may be removed elsewhere, and take their room until the machine runs again. */
export async function keepSaved(directory: string, state: MachineState): Promise<void> {
  try {
    await linkInto(path.join(directory, SAVED_FOLDER), state)
  } catch (error) {
    await forgetSaved(directory)
    if (!isSystemError(error, 'EXDEV')) throw error // then it cannot be saved twice, which is said when it is tried
  }
}

export const forgetSaved = (directory: string): Promise<void> =>
  rm(path.join(directory, SAVED_FOLDER), { recursive: true, force: true })

/** @returns Whether there was one, which is in `folder` now as well. */
export async function linkSavedAgain(directory: string, folder: string): Promise<boolean> {
  const to = stateIn(folder)
  try {
    await linkFiles(stateIn(path.join(directory, SAVED_FOLDER)), to)
    return true
  } catch (error) {
    for (const file of Object.values(to)) await rm(file, { force: true })
    if (isSystemError(error, 'ENOENT')) return false
    throw error
  }
}

async function linkInto(folder: string, state: MachineState): Promise<void> {
  await mkdir(folder, { mode: 0o700 })
  await linkFiles(state, stateIn(folder))
}

async function linkFiles(from: MachineState, to: MachineState): Promise<void> {
  await linkState(from.devices, to.devices)
  await linkState(from.memory, to.memory)
}
