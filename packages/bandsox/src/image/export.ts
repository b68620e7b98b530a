/** Writes an image as an OCI layout, in a folder or in a tar, with the digests that it was published with. */
import { randomBytes } from 'node:crypto'
import { createReadStream, createWriteStream } from 'node:fs'
import { constants, copyFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { type Pack, pack } from 'tar-stream'
import { makeFolder } from '../process/make-folder.js'
import type { ImageRecord } from './image-record.js'
import type { ImageStore } from './image-store.js'
import { mediaTypes, parsePlatform } from './manifest.js'
import type { Descriptor } from './source/source.js'

const LAYOUT = JSON.stringify({ imageLayoutVersion: '1.0.0' })

export interface ExportOptions {
  store: ImageStore
  image: ImageRecord
  /** Names that the layout gives it. */
  references: readonly string[]
  /** A tar when it ends in `.tar`, else a folder. Must not exist yet. */
  path: string
  signal?: AbortSignal | undefined
}

/**
 * All layers are in the store: see `removeLayers`. The target appears when it is whole.
 *
 * @throws `file-error` when the target exists; `artifact-damaged` when a layer is missing.
 */
export async function exportImage(options: ExportOptions): Promise<void> {
  const { path } = options
  await checkAbsent(path)
  const unfinished = `${path}.${randomBytes(4).toString('hex')}.part`
  try {
    if (path.endsWith('.tar')) await writeTar(options, unfinished)
    else await writeFolder(options, unfinished)
    await checkAbsent(path)
    await rename(unfinished, path)
  } finally {
    await rm(unfinished, { recursive: true, force: true })
  }
}

function indexOf({ image, references }: ExportOptions): string {
  const descriptor = { ...image.manifest, platform: parsePlatform(image.platform) }
  const named = references.map((reference) => ({
    ...descriptor,
    annotations: { 'org.opencontainers.image.ref.name': reference },
  }))
  return JSON.stringify({
    schemaVersion: 2,
    mediaType: mediaTypes.ociIndex,
    manifests: named.length === 0 ? [descriptor] : named,
  })
}

/** A layer may come twice in an image, and once in a layout. */
const blobsOf = ({ image }: ExportOptions): Descriptor[] => [
  ...new Map([image.manifest, image.configuration, ...image.layers].map((each) => [each.digest, each])).values(),
]

const blobPath = (digest: string): string => `blobs/${digest.replace(':', '/')}`

async function writeFolder(options: ExportOptions, folder: string): Promise<void> {
  const { store, signal } = options
  await makeFolder(join(folder, 'blobs/sha256'))
  for (const { digest } of blobsOf(options)) {
    signal?.throwIfAborted()
    // Shares its blocks where the file system can.
    await copyFile(store.blobs.pathOf(digest), join(folder, blobPath(digest)), constants.COPYFILE_FICLONE).catch(
      missing,
    )
  }
  await writeFile(join(folder, 'index.json'), indexOf(options))
  await writeFile(join(folder, 'oci-layout'), LAYOUT)
}

async function writeTar(options: ExportOptions, file: string): Promise<void> {
  const { signal } = options
  const tar = pack()
  const written = pipeline(tar, createWriteStream(file), signal === undefined ? {} : { signal })
  written.catch((error: unknown) => tar.destroy(error instanceof Error ? error : new Error(String(error))))
  try {
    await addText(tar, 'oci-layout', LAYOUT)
    await addText(tar, 'index.json', indexOf(options))
    for (const descriptor of blobsOf(options)) await addBlob(tar, descriptor, options.store, signal)
    tar.finalize()
  } catch (error) {
    tar.destroy()
    await written.catch(() => undefined) // the first error is the one to tell
    throw error
  }
  await written
}

const addText = (tar: Pack, name: string, text: string): Promise<void> =>
  new Promise((resolve, reject) => {
    tar.entry({ name, mode: 0o644, mtime: new Date(0) }, text, (error) => (error ? reject(error) : resolve()))
  })

async function addBlob(tar: Pack, descriptor: Descriptor, store: ImageStore, signal?: AbortSignal): Promise<void> {
  const { digest, size } = descriptor
  const found = await store.blobs.sizeOf(digest)
  if (found !== size)
    throw new BandSoxError('artifact-damaged', `${store.blobs.pathOf(digest)} has ${found} bytes, not ${size}`)
  const entry = tar.entry({ name: blobPath(digest), size, mode: 0o644, mtime: new Date(0) })
  await pipeline(createReadStream(store.blobs.pathOf(digest)), entry, signal === undefined ? {} : { signal })
}

async function checkAbsent(path: string): Promise<void> {
  try {
    await stat(path)
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) {
      await stat(dirname(path)).catch((cause: unknown) => {
        throw new BandSoxError('file-not-found', `there is no folder ${dirname(path)}`, { cause })
      })
      return
    }
    throw error
  }
  throw new BandSoxError('file-error', `${path} exists already, and is left as it is`, {
    hint: 'name another file or folder',
  })
}

function missing(error: unknown): never {
  if (!isSystemError(error, 'ENOENT')) throw error
  throw new BandSoxError('artifact-damaged', `a layer is missing: ${error instanceof Error ? error.message : ''}`, {
    cause: error,
  })
}
