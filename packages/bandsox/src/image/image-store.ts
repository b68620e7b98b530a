/** The images of one storage folder: a record each, references to them, and the disks that they share. */
import { createHash } from 'node:crypto'
import { utimesSync } from 'node:fs'
import { readdir, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import type * as z from 'zod'
import { publishDirectory, publishJson, removeAbandoned } from '../artifact/publish.js'
import { checkFile, recordFile } from '../artifact/recorded-file.js'
import { readJsonFile } from '../process/json-file.js'
import { type LockHolder, waitForLockFile } from '../process/lock-file.js'
import { makeFolders } from '../process/make-folder.js'
import { BlobStore } from './blob-store.js'
import { hexOf } from './digest.js'
import {
  diskRecordSchema,
  type ImageRecord,
  imageRecordSchema,
  type ReferenceRecord,
  referenceRecordSchema,
} from './image-record.js'

const DISK_MANIFEST = 'disk.json'
const ROOTFS = 'rootfs.squashfs'
const DAMAGED_HINT = 'remove the file, and fetch the image again: bandsox image pull'

/** Records that can be read, and those that cannot: of a newer version, or broken. These must not keep anybody from the others. */
export interface Records<T> {
  readable: T[]
  damaged: DamagedRecord[]
}

export interface DamagedRecord {
  file: string
  error: BandSoxError
}

/** Raised when the same layers become another disk: with another layout, or another compression. 2: with file handles. */
export const DISK_FORMAT = 'bandsox-disk-2'

/** Names the disk that these layers become: two images of the same layers, however they are packed, share it. */
export const diskKey = (diffIds: readonly string[]): string =>
  createHash('sha256')
    .update([DISK_FORMAT, ...diffIds].join('\n'))
    .digest('hex')

export class ImageStore {
  readonly root: string
  readonly blobs: BlobStore
  readonly #records: string
  readonly #references: string
  readonly #disks: string

  constructor(root: string) {
    this.root = root
    this.blobs = new BlobStore(root)
    this.#records = join(root, 'records')
    this.#references = join(root, 'references')
    this.#disks = join(root, 'disks')
  }

  async open(): Promise<void> {
    await makeFolders([this.#records, this.#references, this.#disks])
    await this.blobs.open()
  }

  /** @throws `artifact-damaged`. */
  async readImage(id: string): Promise<ImageRecord | undefined> {
    return await readJsonFile(this.#recordFile(id), imageRecordSchema, DAMAGED_HINT)
  }

  async writeImage(record: ImageRecord): Promise<void> {
    await publishJson(this.#recordFile(record.id), record)
  }

  async removeImage(id: string): Promise<void> {
    await rm(this.#recordFile(id), { force: true })
  }

  /** Those that can be read. */
  async images(): Promise<ImageRecord[]> {
    return (await this.imageRecords()).readable
  }

  async imageRecords(): Promise<Records<ImageRecord>> {
    return await readAll(this.#records, imageRecordSchema)
  }

  /** The time of the record's file is the time of its last use: one system call, and nothing to write. */
  markUsed(id: string): void {
    const now = new Date()
    utimesSync(this.#recordFile(id), now, now)
  }

  async lastUsedAt(id: string): Promise<Date> {
    return (await stat(this.#recordFile(id))).mtime
  }

  async readReference(reference: string): Promise<ReferenceRecord | undefined> {
    return await readJsonFile(this.#referenceFile(reference), referenceRecordSchema, DAMAGED_HINT)
  }

  async writeReference(record: ReferenceRecord): Promise<void> {
    await publishJson(this.#referenceFile(record.reference), record)
  }

  async removeReference(reference: string): Promise<void> {
    await rm(this.#referenceFile(reference), { force: true })
  }

  /** Those that can be read. */
  async references(): Promise<ReferenceRecord[]> {
    return (await this.#referenceRecords()).readable
  }

  /** Records and references that cannot be read. */
  async damaged(): Promise<DamagedRecord[]> {
    return [...(await this.imageRecords()).damaged, ...(await this.#referenceRecords()).damaged]
  }

  /** @returns Path and size of a disk's file; undefined when there is none, or it was changed since it was made. */
  async findDisk(key: string): Promise<{ path: string; sizeBytes: number } | undefined> {
    const directory = join(this.#disks, key)
    try {
      const disk = await readJsonFile(join(directory, DISK_MANIFEST), diskRecordSchema)
      if (disk === undefined) return undefined
      await checkFile(directory, disk.rootfs)
      return { path: join(directory, disk.rootfs.file), sizeBytes: disk.rootfs.sizeBytes }
    } catch (error) {
      if (error instanceof BandSoxError && error.code === 'artifact-damaged') return undefined
      throw error
    }
  }

  /** @param write Makes the file. The disk appears whole or not at all. */
  async makeDisk(key: string, write: (path: string) => Promise<void>): Promise<void> {
    await removeAbandoned(this.#disks)
    const make = async (unfinished: string): Promise<string> => {
      await write(join(unfinished, ROOTFS))
      await publishJson(join(unfinished, DISK_MANIFEST), { version: 1, rootfs: await recordFile(unfinished, ROOTFS) })
      return key
    }
    await publishDirectory(this.#disks, make, async () => (await this.findDisk(key)) !== undefined)
  }

  /** Held by who makes a disk; others that want the same wait for it. */
  async lockDisk(
    key: string,
    options: { onWait?: (holder: LockHolder, hint: string | undefined) => void; signal?: AbortSignal | undefined },
  ): Promise<() => Promise<void>> {
    return await waitForLockFile(join(this.root, 'locks', `disk-${key}.lock`), 'make a disk', options)
  }

  async disks(): Promise<string[]> {
    return (await readdir(this.#disks)).filter((name) => /^[0-9a-f]{64}$/.test(name))
  }

  /** @returns Bytes that were freed, as far as nobody else holds the file. */
  async removeDisk(key: string): Promise<number> {
    const directory = join(this.#disks, key)
    const size = (await this.findDisk(key))?.sizeBytes ?? 0
    const removed = join(this.#disks, `.removed-${key}`)
    await rm(removed, { recursive: true, force: true })
    try {
      await rename(directory, removed) // a half-removed one must not be found
    } catch (error) {
      if (isSystemError(error, 'ENOENT')) return 0
      throw error
    }
    await rm(removed, { recursive: true, force: true })
    return size
  }

  /** What killed processes left of disks that they were making or removing. */
  async removeUnfinishedDisks(): Promise<void> {
    await removeAbandoned(this.#disks)
    for (const name of await readdir(this.#disks)) {
      if (name.startsWith('.removed-')) await rm(join(this.#disks, name), { recursive: true, force: true })
    }
    for (const folder of [this.#records, this.#references]) await removeAbandoned(folder)
  }

  async #referenceRecords(): Promise<Records<ReferenceRecord>> {
    return await readAll(this.#references, referenceRecordSchema)
  }

  #recordFile(id: string): string {
    return join(this.#records, `${hexOf(id)}.json`)
  }

  /** A reference may be longer than a file's name may, and holds slashes. */
  #referenceFile(reference: string): string {
    return join(this.#references, `${createHash('sha256').update(reference).digest('hex')}.json`)
  }
}

async function readAll<S extends z.ZodType>(folder: string, schema: S): Promise<Records<z.infer<S>>> {
  const records: Records<z.infer<S>> = { readable: [], damaged: [] }
  for (const name of (await readdir(folder)).sort()) {
    if (!name.endsWith('.json')) continue
    const file = join(folder, name)
    try {
      const record = await readJsonFile(file, schema, DAMAGED_HINT)
      if (record !== undefined) records.readable.push(record) // else removed since
    } catch (error) {
      if (!(error instanceof BandSoxError && error.code === 'artifact-damaged')) throw error
      records.damaged.push({ file, error })
    }
  }
  return records
}
