/** Tells a storage folder from a copy of it, whose records speak of machines that are not its own. */
import { readlink } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { z } from 'zod'
import { readRun } from '../process/shim.js'
import type { Database } from './database.js'
import { folderIdentity, VMS_FOLDER } from './storage-folder.js'

const storageRow = z.object({ path: z.string(), inode: z.string() })

/** @returns False when nobody has entered which folder this database is of: it is new. */
export async function hasIdentity(database: Database): Promise<boolean> {
  return (await database.read((tables) => tables.row('SELECT 1 FROM storage'))) !== undefined
}

/**
 * Accepts a folder that was moved; refuses one that was copied while machines of the original run: ending "its" machines would
 * end the original's.
 *
 * @throws `storage-unusable`.
 */
export async function refuseCopy(root: string, database: Database): Promise<void> {
  const identity = await folderIdentity(root)
  const row = await database.read((tables) => tables.row('SELECT path, inode FROM storage'))
  const recorded = storageRow.parse(row)
  if (recorded.inode === identity.inode && recorded.path === identity.path) return
  const running = await database.read((tables) => tables.rows('SELECT id FROM sandboxes WHERE cid IS NOT NULL'))
  for (const { id } of running) {
    const elsewhere = await runsElsewhere(path.join(identity.path, VMS_FOLDER, String(id)))
    if (elsewhere === undefined) continue
    throw new BandSoxError(
      'storage-unusable',
      `${root} is a copy of the storage ${recorded.path}: sandbox ${String(id)} runs there, in ${elsewhere}`,
      { hint: `use the original: --storage ${recorded.path}; or stop its sandboxes, copy it again, and use the copy` },
    )
  }
  await database.write((tables) => tables.change('UPDATE storage SET path = $path, inode = $inode', identity))
}

/** Where the VM of this directory really runs, when that is another one. */
async function runsElsewhere(directory: string): Promise<string | undefined> {
  const { run, vmmAlive } = await readRun(directory)
  if (run === undefined || !vmmAlive) return undefined
  try {
    const cwd = await readlink(`/proc/${run.vmm.pid}/cwd`)
    return cwd === directory ? undefined : cwd
  } catch (error) {
    if (isSystemError(error, 'ENOENT') || isSystemError(error, 'ESRCH')) return undefined // it has ended just now
    throw error
  }
}
