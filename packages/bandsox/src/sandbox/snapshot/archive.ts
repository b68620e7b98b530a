/**
 * A snapshot in one file: a tar of its folder, in which holes stay holes, with the digest of its manifest in front.
 *
 * An archive may come from anywhere: of it only plain files that its manifest names are taken, as long and as whole as that says.
 */
import { createReadStream, existsSync } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, messageOf, printableLine } from '@bandsox/sdk'
import { publishFile } from '../../artifact/publish.js'
import { runCommand } from '../../process/run.js'
import type { SnapshotRecord } from '../../store/snapshot-store.js'
import type { Extent, TarEntry } from '../../tar/tar-entry.js'
import { TarReader } from '../../tar/tar-reader.js'
import { checkedMemory, checkedVcpu } from '../create-options.js'
import { checkedLabelKey, checkedLabels, checkedMetadata, checkedName } from '../description.js'
import { checkedEnv } from '../environment.js'
import { requireFreeSpace } from '../free-space.js'
import { type Host, IMPORTED_ROOT, machineFiles } from '../host.js'
import { checkedLimits } from '../limits.js'
import { layerName, MAX_LAYERS, prepareCopies } from './disk.js'
import { checkFiles, snapshotFiles } from './files.js'
import {
  checkDigestFile,
  DIGEST_FILE,
  digestOf,
  MANIFEST_FILE,
  type Manifest,
  parseManifest,
  writeManifest,
} from './manifest.js'
import { manifestOf } from './whole.js'

const DIGEST = /^[0-9a-f]{64}\n$/
const MAX_ENTRIES = 160
const MAX_SMALL_BYTES = 4 * 1024 * 1024
const COPY_BYTES = 1024 * 1024
const MIB = 1024 * 1024
const ALL_READ = 0o444
/** Who may read it could read the memory, and what the programs in it keep there. */
const OWNER_ONLY = 0o600
const ROOT_FILES: readonly string[] = [machineFiles.root, IMPORTED_ROOT]
const SANDBOX_ID = /^sbx_[a-z2-7]{10}$/
/** The other is of what the earlier project had. */
const IMAGE_DIGEST = /^(?:sha256:[0-9a-f]{64}|imported:[A-Za-z0-9._-]{1,128})$/
/** Of a name that is shown; an image's has 255 characters at most. */
const MAX_SHOWN = 1_024
/** What tar says of a full disk, of which it takes what is left. */
const NO_SPACE = /no space left on device|wrote only \d+ of/i

/**
 * @throws `bad-request` for one that builds on another, or a file that is there already; `file-not-found` where its folder is not;
 *   `snapshot-damaged`; `no-space`; system errors.
 */
export async function exportSnapshot(
  host: Host,
  record: SnapshotRecord,
  file: string,
  { signal }: { signal?: AbortSignal },
): Promise<{ bytes: number }> {
  const manifest = await manifestOf(host, record)
  if (manifest.kind === 'diff')
    throw new BandSoxError(
      'bad-request',
      `cannot export snapshot ${record.id}: it holds only what has changed since ${record.base}`,
      { hint: `make it independent of that first: bandsox snapshot merge ${record.id}` },
    )
  if (existsSync(file)) throw new BandSoxError('bad-request', `cannot export to ${file}: it is there already`)
  const target = path.dirname(path.resolve(file))
  if (!existsSync(target))
    throw new BandSoxError('file-not-found', `cannot export to ${file}: there is no folder ${target}`)
  const folder = host.store.snapshots.folderOf(record.id)
  await checkDigestFile(folder, record.id, record.manifestDigest ?? '')
  await checkFiles(host, { folder, title: `snapshot ${record.id}` }, manifest.files, record.seals, { signal })
  const bytes = manifest.files.reduce((sum, { allocatedBytes }) => sum + allocatedBytes, 0)
  await requireFreeSpace(target, bytes, `snapshot ${record.id} in a file`)
  const names = [DIGEST_FILE, MANIFEST_FILE, ...manifest.files.map(({ name }) => name)]
  await publishFile(path.resolve(file), async (unfinished) => {
    await (await open(unfinished, 'wx', OWNER_ONLY)).close() // tar keeps the mode of a file that is there
    const options = ['--format=posix', '--sparse', '--sparse-version=1.0', '--owner=0', '--group=0', '--numeric-owner']
    const argv = ['tar', '--create', ...options, `--file=${unfinished}`, `--directory=${folder}`, '--', ...names]
    await runCommand(argv, signal === undefined ? {} : { signal }).catch((error: unknown) => {
      throw NO_SPACE.test(messageOf(error)) ? noSpace(file, error) : error
    })
    await using handle = await open(unfinished, 'r')
    await handle.sync()
  })
  return { bytes: (await stat(file)).size }
}

const noSpace = (file: string, cause: unknown): BandSoxError =>
  new BandSoxError('no-space', `no space to export to ${file}`, { cause, hint: 'free some, or write it elsewhere' })

/** @throws `file-not-found`; `bad-request` for what is no archive of ours; `snapshot-damaged`; `no-space`. Nothing is left then. */
export async function importSnapshot(
  host: Host,
  file: string,
  { name, signal }: { name?: string; signal?: AbortSignal },
): Promise<SnapshotRecord> {
  if (name !== undefined) checkedName(name)
  await using archive = await openArchive(file)
  const entries = await entriesOf(archive, file, signal)
  const manifest = await manifestIn(archive, file, entries)
  const bytes = [...entries.values()].reduce((sum, { content }) => sum + content.storedBytes, 0)
  await requireFreeSpace(host.store.root, bytes, `the snapshot in ${file}`)
  const { sandbox, shape } = manifest
  const unfinished = await host.store.snapshots.begin({
    ...{ name, purpose: 'snapshot', templateKey: undefined, sandbox: sandbox.id, base: undefined, metadata: {} },
  })
  if (unfinished === undefined) throw new BandSoxError('internal', 'there is a template in the place of an import')
  try {
    for (const recorded of manifest.files) {
      const entry = entries.get(recorded.name)
      if (entry?.content.sizeBytes !== recorded.sizeBytes)
        throw new BandSoxError(
          'snapshot-damaged',
          `${recorded.name} is missing in ${file}, or has another size than it says`,
        )
      await copyOut(archive, entry, path.join(unfinished.folder, recorded.name), signal)
    }
    const of = {
      folder: unfinished.folder,
      title: `the snapshot in ${file}`,
      hint: 'it was damaged on its way: bring it anew',
    }
    const seals = await checkFiles(host, of, manifest.files, {}, { all: true, signal })
    for (const layer of manifest.layers)
      await host.vmm.checkLayer(path.join(unfinished.folder, layer), shape.diskMib * MIB)
    await prepareCopies(host, unfinished.folder, manifest, signal)
    const manifestDigest = await writeManifest(unfinished.folder, manifest)
    return await unfinished.publish({ manifestDigest, seals: seals ?? {} })
  } catch (error) {
    if (!isSystemError(error, 'ENOSPC') && !NO_SPACE.test(messageOf(error))) throw error
    throw new BandSoxError('no-space', `no space for the snapshot in ${file}; nothing of it was kept`, {
      ...{ cause: error, hint: 'free some: bandsox system df, bandsox system prune' },
    })
  } finally {
    await unfinished.discard()
  }
}

async function openArchive(file: string): Promise<FileHandle> {
  try {
    const handle = await open(file, 'r')
    if ((await handle.stat()).isFile()) return handle
    await handle.close()
    throw new BandSoxError('bad-request', `cannot import ${file}: it is no file`)
  } catch (error) {
    if (!isSystemError(error, 'ENOENT')) throw error
    throw new BandSoxError('file-not-found', `cannot import ${file}: there is no such file`, { cause: error })
  }
}

/** Where what lies in the archive; nothing is taken out yet. */
async function entriesOf(
  archive: FileHandle,
  file: string,
  signal: AbortSignal | undefined,
): Promise<Map<string, TarEntry>> {
  const entries = new Map<string, TarEntry>()
  const reader = new TarReader((entry) => {
    if (entry.kind !== 'file' || entries.has(entry.path) || entries.size >= MAX_ENTRIES)
      throw new BandSoxError('layer-invalid', `it holds more than the plain files of a snapshot`)
    entries.set(entry.path, entry)
  })
  try {
    const stream = createReadStream(file, { fd: archive.fd, autoClose: false, start: 0, highWaterMark: COPY_BYTES })
    for await (const chunk of stream) {
      signal?.throwIfAborted()
      reader.write(chunk as Buffer)
    }
    reader.end()
  } catch (error) {
    if (!(error instanceof BandSoxError && error.code === 'layer-invalid')) throw error
    throw noArchive(file, error.message, error)
  }
  return entries
}

const noArchive = (file: string, reason: string, cause?: unknown): BandSoxError =>
  new BandSoxError(
    'bad-request',
    `cannot import ${file}: it is no snapshot that was exported, or not all of it: ${reason}`,
    {
      cause,
    },
  )

async function manifestIn(archive: FileHandle, file: string, entries: Map<string, TarEntry>): Promise<Manifest> {
  const small = async (name: string): Promise<Buffer> => {
    const content = entries.get(name)?.content
    if (content === undefined) throw noArchive(file, `${name} is not in it`)
    if (content.sizeBytes > MAX_SMALL_BYTES || content.extents !== undefined)
      throw noArchive(file, `${name} is too large`)
    const bytes = Buffer.alloc(content.sizeBytes)
    await readFully(archive, bytes, content.position)
    return bytes
  }
  const digest = (await small(DIGEST_FILE)).toString('latin1')
  const content = await small(MANIFEST_FILE)
  if (!DIGEST.test(digest) || digestOf(content) !== digest.trim())
    throw new BandSoxError('snapshot-damaged', `${MANIFEST_FILE} in ${file} is not as it was written`)
  return requireWhole(parseManifest(content), file)
}

/**
 * It says of itself what it likes. What it names becomes files of a VM's directory, where others of ours have names as well, and what a
 * sandbox is: so it may have what a snapshot of ours has, and nothing else.
 */
function requireWhole(manifest: Manifest, file: string): Manifest {
  const { kind, files, layers, rootFile, shape } = manifest
  if (kind !== 'full') throw noArchive(file, 'it holds only what has changed since another one')
  if (layers.length > MAX_LAYERS || layers.some((name, index) => name !== layerName(index + 1)))
    throw noArchive(file, 'its disk has layers that no sandbox has')
  if (!ROOT_FILES.includes(rootFile)) throw noArchive(file, `its root disk is called ${rootFile}`)
  const sizes = new Map(files.map(({ name, sizeBytes }) => [name, sizeBytes]))
  const names = [...Object.values(snapshotFiles), ...layers, rootFile]
  const missing = names.find((name) => !sizes.has(name))
  if (missing !== undefined) throw noArchive(file, `its manifest knows no ${missing}`)
  const other = files.find(
    ({ name }, index) => !names.includes(name) || files.findIndex((each) => each.name === name) !== index,
  )
  if (other !== undefined) throw noArchive(file, `its manifest has a ${other.name} too many`)
  if (
    sizes.get(snapshotFiles.memory) !== shape.memoryMib * MIB ||
    sizes.get(snapshotFiles.overlay) !== shape.diskMib * MIB
  )
    throw noArchive(file, 'its memory or its disk has another size than its shape')
  requireUsual(manifest, file)
  return manifest
}

/** What `create` would refuse does not come in by an archive; nor does text that a terminal obeys. */
function requireUsual({ shape, sandbox, image, machine }: Manifest, file: string): void {
  try {
    checkedVcpu(shape.vcpu)
    checkedMemory(shape.memoryMib)
    checkedEnv(shape.env)
    checkedLabels(shape.labels)
    for (const key of Object.keys(shape.labels)) checkedLabelKey(key)
    checkedMetadata(shape.metadata)
    checkedLimits(shape.limits, shape.limits)
    if (sandbox.name !== undefined) checkedName(sandbox.name)
  } catch (error) {
    if (!(error instanceof BandSoxError && error.code === 'bad-request')) throw error
    throw noArchive(file, error.message, error)
  }
  if (!SANDBOX_ID.test(sandbox.id)) throw noArchive(file, 'it is of no sandbox')
  if (!IMAGE_DIGEST.test(image.digest)) throw noArchive(file, 'its image has no digest')
  const shown = [image.reference, machine.vmm, machine.version]
  if (shown.some((text) => text.length > MAX_SHOWN || printableLine(text) !== text))
    throw noArchive(file, 'the names of its image or VMM are not fit to be shown')
}

async function copyOut(
  archive: FileHandle,
  { content }: TarEntry,
  to: string,
  signal: AbortSignal | undefined,
): Promise<void> {
  await using target = await open(to, 'wx', 0o600)
  await target.truncate(content.sizeBytes)
  const extents: readonly Extent[] = content.extents ?? [{ offset: 0, length: content.sizeBytes }]
  const buffer = Buffer.alloc(COPY_BYTES)
  let position = content.position
  for (const { offset, length } of extents) {
    for (let done = 0; done < length; done += COPY_BYTES) {
      signal?.throwIfAborted()
      const piece = buffer.subarray(0, Math.min(COPY_BYTES, length - done))
      await readFully(archive, piece, position)
      await writeFully(target, piece, offset + done)
      position += piece.length
    }
  }
  await target.chmod(ALL_READ)
  await target.sync()
}

/** A disk that is nearly full takes a part. */
async function writeFully(to: FileHandle, bytes: Buffer, position: number): Promise<void> {
  for (let done = 0; done < bytes.length; )
    done += (await to.write(bytes, done, bytes.length - done, position + done)).bytesWritten
}

async function readFully(from: FileHandle, into: Buffer, position: number): Promise<void> {
  for (let done = 0; done < into.length; ) {
    const { bytesRead } = await from.read(into, done, into.length - done, position + done)
    if (bytesRead === 0) throw new BandSoxError('bad-request', 'the archive was cut short while it was read')
    done += bytesRead
  }
}
