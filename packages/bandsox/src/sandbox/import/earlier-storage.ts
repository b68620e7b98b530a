/** Reads the storage folder of the earlier project, in Python; nothing in it is changed, and nothing of it is trusted. */
import { type FileHandle, realpath } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import { type EarlierRecord, parseNextCid, parseNextPort, parseRecord } from './earlier-record.js'
import { SourceFolder } from './source-folder.js'

const MAX_RECORDS = 10_000
/** Besides records, what else may lie in their folder. */
const MAX_NAMES = 2 * MAX_RECORDS
/** A record has about 1 KiB; metadata of users may be larger. */
const MAX_RECORD_BYTES = 1024 * 1024
/** Of all records: they are in memory together. */
const MAX_TOTAL_BYTES = 128 * 1024 * 1024
const MAX_DISK_BYTES = 1024 ** 4
/** Magic of ext2, 3 and 4 (kernel.org, filesystems/ext4: s_magic of the superblock at 1024). All that the host looks at. */
const EXT4_MAGIC = Buffer.from([0x53, 0xef])
const EXT4_MAGIC_OFFSET = 0x438

export interface EarlierDisk {
  /** In the folder of images. */
  name: string
  sizeBytes: number
  allocatedBytes: number
  /** Device and inode: what a process that has it open is known by. */
  file: string
}

export interface EarlierVm {
  record: EarlierRecord
  /** Or why there is none. */
  disk: EarlierDisk | { problem: string }
  notes: string[]
}

export interface EarlierStorage extends AsyncDisposable {
  readonly folder: string
  readonly vms: readonly EarlierVm[]
  /** Records that are none, by their files' names. */
  readonly damaged: readonly { file: string; reason: string }[]
  readonly nextCid: number | undefined
  readonly nextPort: number | undefined
  /** What is wrong with the folder as a whole. */
  readonly problems: readonly string[]
  /** Opens a disk again. The caller closes it. @throws As `SourceFolder.openFile`; `file-not-found`. */
  openDisk(disk: EarlierDisk): Promise<FileHandle>
}

/**
 * @throws `file-not-found`, `permission-denied`, `bad-request` for a folder that is none of the earlier project's; what is wrong
 *   with a single record is told in `damaged`.
 */
export async function openEarlierStorage(given: string): Promise<EarlierStorage> {
  const folder = await realFolder(given)
  const opened: SourceFolder[] = []
  const openFolder = async (name: string): Promise<SourceFolder | undefined> => {
    const source = await unlessMissing(SourceFolder.open(path.join(folder, name)))
    if (source !== undefined) opened.push(source)
    return source
  }
  const close = async () => void (await Promise.all(opened.map((source) => source.close())))
  try {
    const problems: string[] = []
    const root = await openFolder('.')
    const nextCid = await allocator(root, 'cid_allocator.json', parseNextCid, problems)
    const nextPort = await allocator(root, 'port_allocator.json', parseNextPort, problems)
    const metadata = await openFolder('metadata')
    if (metadata === undefined && nextCid === undefined && nextPort === undefined)
      throw new BandSoxError(
        'bad-request',
        `${folder} is not a storage of the earlier BandSox: it has no folder metadata`,
        { hint: 'give the folder in which metadata, images and cid_allocator.json lie, such as /var/lib/sandbox' },
      )
    const images = await openFolder('images')
    const found = metadata === undefined ? { vms: [], damaged: [] } : await readRecords(folder, metadata, images)
    return {
      ...{ folder, ...found, nextCid, nextPort, problems },
      async openDisk({ name }) {
        const handle = await images?.openFile(name)
        if (handle === undefined) throw new BandSoxError('file-not-found', `${folder}/images/${name} is gone`)
        return handle
      },
      [Symbol.asyncDispose]: close,
    }
  } catch (error) {
    await close()
    throw error
  }
}

/** The folder itself is the user's word, and may be a link. */
async function realFolder(given: string): Promise<string> {
  try {
    return await realpath(given)
  } catch (error) {
    const code = isSystemError(error, 'EACCES') ? 'permission-denied' : 'file-not-found'
    throw new BandSoxError(code, `cannot read ${given}: ${messageOf(error)}`, { cause: error })
  }
}

async function unlessMissing<T>(opening: Promise<T>): Promise<T | undefined> {
  try {
    return await opening
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'file-not-found') return undefined
    throw error
  }
}

async function allocator(
  root: SourceFolder | undefined,
  name: string,
  parse: (text: string) => number,
  problems: string[],
): Promise<number | undefined> {
  try {
    const text = await root?.readText(name, MAX_RECORD_BYTES)
    return text === undefined ? undefined : parse(text)
  } catch (error) {
    problems.push(`${name} is damaged: ${messageOf(error)}`)
    return undefined
  }
}

async function readRecords(
  folder: string,
  metadata: SourceFolder,
  images: SourceFolder | undefined,
): Promise<Pick<EarlierStorage, 'vms' | 'damaged'>> {
  const vms: EarlierVm[] = []
  const damaged: { file: string; reason: string }[] = []
  const files = (await metadata.names(MAX_NAMES)).filter((name) => name.endsWith('.json'))
  if (files.length > MAX_RECORDS)
    throw new BandSoxError(
      'bad-request',
      `${metadata.path} holds ${files.length} records; at most ${MAX_RECORDS} are read`,
    )
  let totalBytes = 0
  for (const file of files) {
    try {
      const text = await metadata.readText(file, MAX_RECORD_BYTES)
      if (text === undefined) continue // it was removed just now
      totalBytes += text.length
      if (totalBytes > MAX_TOTAL_BYTES)
        throw new BandSoxError('bad-request', `those before it are ${MAX_TOTAL_BYTES} bytes long already`)
      const record = parseRecord(file, text)
      vms.push({ record, ...(await findDisk(folder, images, record)) })
    } catch (error) {
      // Whatever it is: one record must not keep the others out.
      damaged.push({ file, reason: messageOf(error) })
    }
  }
  return { vms, damaged }
}

/** Only a file of the folder `images` is ever taken, wherever the record points. */
async function findDisk(
  folder: string,
  images: SourceFolder | undefined,
  { id, rootfsPath }: EarlierRecord,
): Promise<Pick<EarlierVm, 'disk' | 'notes'>> {
  const own = `${id}.ext4`
  // Where the folder was then need not be where it is now.
  const recorded = rootfsPath === null ? own : path.resolve(folder, rootfsPath)
  const isInImages = rootfsPath === null || path.basename(path.dirname(recorded)) === 'images'
  const notes = isInImages ? [] : [`its disk is recorded outside of images (${rootfsPath}): not looked for there`]
  for (const name of new Set(isInImages ? [path.basename(recorded), own] : [own])) {
    try {
      const disk = await examineDisk(images, name)
      if (disk !== undefined) return { disk, notes }
    } catch (error) {
      return { disk: { problem: messageOf(error) }, notes }
    }
  }
  return { disk: { problem: `its disk was not found in ${path.join(folder, 'images')}` }, notes }
}

/** @returns undefined when there is none. @throws Why it cannot be taken. */
async function examineDisk(images: SourceFolder | undefined, name: string): Promise<EarlierDisk | undefined> {
  const handle = await images?.openFile(name)
  if (handle === undefined) return undefined
  try {
    const { size, blocks, dev, ino } = await handle.stat({ bigint: true })
    if (size > MAX_DISK_BYTES)
      throw new BandSoxError('bad-request', `its disk images/${name} is larger than ${MAX_DISK_BYTES} bytes`)
    const { buffer } = await handle.read(Buffer.alloc(EXT4_MAGIC.length), { position: EXT4_MAGIC_OFFSET })
    if (!buffer.equals(EXT4_MAGIC))
      throw new BandSoxError('bad-request', `its disk images/${name} holds no ext4 file system`)
    return { name, sizeBytes: Number(size), allocatedBytes: Number(blocks * 512n), file: `${dev}:${ino}` }
  } finally {
    await handle.close()
  }
}
