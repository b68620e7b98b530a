/** The folder of all state: made, or refused with a reason before anything in it is touched. */
import { access, chmod, constants, readdir, realpath, stat, statfs } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import { makeFolder } from '../process/make-folder.js'

export const DATABASE_FILE = 'bandsox.db'
export const VMS_FOLDER = 'vms'

/** What belongs to a storage folder, by its name; `leases` and `operation.lock` are of earlier versions. */
const OURS = /^(?:bandsox\.db.*|vms|boot|images|disks|snapshots|leases|tmp|operation\.lock.*|lost\+found)$/
/** What the earlier project's has. */
const EARLIER_PROJECT = ['cid_allocator.json', 'port_allocator.json', 'metadata']

/**
 * Network file systems, by `f_type` (linux/magic.h and the file systems' own headers). WAL needs memory that all processes share,
 * which a second host does not (https://www.sqlite.org/wal.html), and some of them do not keep locks.
 */
const NETWORK_FILE_SYSTEMS = new Map([
  [0x6969, 'NFS'],
  [0x517b, 'SMB'],
  [0xfe534d42, 'SMB'],
  [0xff534d42, 'CIFS'],
  [0x01021997, '9P'],
  [0x00c36400, 'Ceph'],
  [0x5346414f, 'AFS'],
  [0x6b414653, 'AFS'],
  [0x73757245, 'Coda'],
  [0x0bd00bd0, 'Lustre'],
  [0x7461636f, 'OCFS2'],
  [0x01161970, 'GFS2'],
  [0x786f4256, 'vboxsf'],
])

/** @returns Its name; undefined for a local one, and for one that is not known. */
export const networkFileSystem = (type: number): string | undefined => NETWORK_FILE_SYSTEMS.get(type >>> 0)

/**
 * Longest path of the folder. A VM's own folder comes below it, and below that names of some 30 bytes; sockets are reached
 * whatever their length is, paths end at 4095 bytes.
 */
const MAX_PATH_BYTES = 3_500

/**
 * Makes the folder, or checks one that is there. Only its owner may look inside: consoles and disks are in there.
 *
 * @throws `storage-unusable`, `permission-denied`, `bad-request`.
 */
export async function openStorageFolder(folder: string, fileSystemOf = fileSystemType): Promise<void> {
  if (Buffer.byteLength(folder) > MAX_PATH_BYTES)
    throw new BandSoxError('bad-request', `the path of the storage is ${Buffer.byteLength(folder)} bytes long`, {
      hint: `use a folder with a path of at most ${MAX_PATH_BYTES} bytes: --storage FOLDER`,
    })
  await refuseNested(folder)
  await makeStorage(folder)
  const { uid, mode } = await stat(folder)
  const self = process.geteuid?.() ?? uid
  if (uid !== self)
    throw new BandSoxError(
      'permission-denied',
      `the storage ${folder} belongs to user ${uid}, and you are ${self === 0 ? 'root' : `user ${self}`}: two users cannot share one`,
      { hint: 'run as that user, or use another folder: --storage FOLDER' },
    )
  const network = networkFileSystem(await fileSystemOf(folder))
  if (network !== undefined)
    throw new BandSoxError('storage-unusable', `the storage ${folder} is on a network file system (${network})`, {
      hint: 'use a folder on a disk of this host: --storage FOLDER; its database needs memory that all its users share',
    })
  await refuseForeign(folder, await readdir(folder))
  try {
    await access(folder, constants.W_OK | constants.X_OK)
    await makeFolder(path.join(folder, VMS_FOLDER), 0o700)
  } catch (error) {
    throw unwritable(folder, error)
  }
  if ((mode & 0o077) !== 0) await chmod(folder, 0o700)
}

const fileSystemType = async (folder: string): Promise<number> => (await statfs(folder)).type

async function makeStorage(folder: string): Promise<void> {
  try {
    await makeFolder(folder, 0o700)
  } catch (error) {
    if (isSystemError(error, 'EEXIST') || isSystemError(error, 'ENOTDIR'))
      throw new BandSoxError('storage-unusable', `the storage ${folder} is not a folder`, {
        cause: error,
        hint: 'use another one: --storage FOLDER',
      })
    throw unwritable(folder, error)
  }
}

const unwritable = (folder: string, cause: unknown) =>
  new BandSoxError('storage-unusable', `cannot write to the storage ${folder}: ${messageOf(cause)}`, {
    cause,
    hint: 'let it belong to you, or use another folder: --storage FOLDER',
  })

/** A VM's folder, or the images', would be taken for a storage of its own. */
async function refuseNested(folder: string): Promise<void> {
  for (let above = path.dirname(folder); above !== path.dirname(above); above = path.dirname(above)) {
    if (!(await isThere(path.join(above, DATABASE_FILE)))) continue
    throw new BandSoxError('storage-unusable', `${folder} lies inside another storage, ${above}`, {
      hint: `use that one, or a folder outside of it: --storage ${above}`,
    })
  }
}

async function isThere(file: string): Promise<boolean> {
  try {
    await stat(file)
    return true
  } catch {
    return false // absent, or nothing that we could use: either way there is no storage to protect
  }
}

/** A folder of somebody's would get our mode and our files. */
async function refuseForeign(folder: string, names: string[]): Promise<void> {
  if (names.includes(DATABASE_FILE)) return
  if (EARLIER_PROJECT.some((name) => names.includes(name)))
    throw new BandSoxError('storage-unusable', `${folder} is a storage of the earlier BandSox, in Python`, {
      hint: `leave it as it is, and import it into a new one: bandsox import ${folder} --storage FOLDER`,
    })
  const foreign = names.find((name) => !OURS.test(name))
  if (foreign === undefined) return
  throw new BandSoxError(
    'storage-unusable',
    `${folder} is not a storage of BandSox, and not empty: it holds ${JSON.stringify(foreign)}`,
    { hint: 'use an empty folder, or one that does not exist yet: --storage FOLDER' },
  )
}

/** What tells this folder from a copy of it. */
export async function folderIdentity(folder: string): Promise<{ path: string; inode: string }> {
  const { dev, ino } = await stat(folder, { bigint: true })
  return { path: await realpath(folder), inode: `${dev}:${ino}` }
}
