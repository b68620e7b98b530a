/** Where the state of a hibernated sandbox lies. */
import { rm } from 'node:fs/promises'
import path from 'node:path'
import type { Host } from '../host.js'

/** In the VM's directory; the name that it has until it is whole comes with `.new`. */
const FOLDER = 'hibernated'
const REMOVAL = { recursive: true, force: true } as const

export const hibernatedFolder = (host: Host, id: string): string => path.join(host.store.directoryOf(id), FOLDER)
export const unfinishedFolder = (host: Host, id: string): string => `${hibernatedFolder(host, id)}.new`

/** Gives the state up, or what there is of one. */
export async function dropHibernated(host: Host, id: string): Promise<void> {
  for (const folder of [unfinishedFolder(host, id), hibernatedFolder(host, id)]) await rm(folder, REMOVAL)
}
