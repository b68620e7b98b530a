/** The files of a state in a VM's directory: those that the machine was loaded from, and those that it was saved into last. */
import { mkdir, rm } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'
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
/** Of every machine, as each can be saved. */
export const STATE_FOLDERS = [LOADED_FOLDER, SAVED_FOLDER]

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

export const removeLoaded = (directory: string): Promise<void> =>
  rm(path.join(directory, LOADED_FOLDER), { recursive: true, force: true })

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
