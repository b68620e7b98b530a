/** Opens what a reference names, whatever kind of place that is. */
import { createReadStream, createWriteStream } from 'node:fs'
import { open, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { pipeline } from 'node:stream/promises'
import { BandSoxError, isSystemError, type RegistryCredentials } from '@bandsox/sdk'
import { makeWorkDirectory } from '../../artifact/publish.js'
import { runCommand } from '../../process/run.js'
import { compressionOf, decompress } from '../layer/decompress.js'
import type { Platform } from '../manifest.js'
import { isDockerArchive, openDockerArchive } from './docker-archive.js'
import { folderFiles, type ImageFiles, tarFiles } from './files.js'
import { isLayout, openLayout } from './layout.js'
import type { SourceReference } from './reference.js'
import type { CredentialSources } from './registry/credentials.js'
import type { ProxySettings } from './registry/proxy.js'
import { openRegistry } from './registry/registry.js'
import type { RegistryConfig } from './registry/registry-config.js'
import { openRootfsTar } from './rootfs-tar.js'
import type { ImageSource } from './source.js'

export interface SourceContext {
  registries: RegistryConfig
  credentialSources: CredentialSources
  proxy: ProxySettings
  /** Folder for what must be unpacked first, and for what an engine writes: on the storage's file system. */
  workFolder: string
  platform: Platform
  debug: (message: string) => void
}

export interface OpenOptions {
  credentials?: RegistryCredentials | undefined
  signal?: AbortSignal | undefined
}

/** A source that also knows the names that its file gives the image. */
export type NamedImageSource = ImageSource & { names: string[] }

/**
 * @throws `file-not-found`, `image-invalid`, `image-not-found`, `layer-invalid`, `bad-request`, `host-missing` without the engine,
 *   `command-failed` with what the engine says. Nothing is sent to a registry yet.
 */
export async function openSource(
  reference: SourceReference,
  context: SourceContext,
  { credentials, signal }: OpenOptions = {},
): Promise<NamedImageSource> {
  switch (reference.kind) {
    case 'registry': {
      const { registries: config, credentialSources, proxy, debug } = context
      return nameless(await openRegistry({ reference, config, credentials, credentialSources, proxy, debug }))
    }
    case 'oci':
      await checkKind(reference.folder, 'folder')
      return await openLayout(folderFiles(reference.folder), reference.tag)
    case 'oci-archive':
      return await openArchive(reference.file, reference.tag, 'oci', context, signal)
    case 'docker-archive':
      return await openArchive(reference.file, reference.reference, 'docker', context, signal)
    case 'rootfs':
      await checkKind(reference.file, 'file')
      return nameless(await openRootfsTar(reference.file, context.platform, signal))
    case 'docker-daemon':
      return await openEngine(['docker', 'image', 'save'], reference.name, context, signal)
    case 'podman':
      return await openEngine(
        ['podman', 'image', 'save', '--format', 'docker-archive'],
        reference.name,
        context,
        signal,
      )
  }
}

/**
 * Opens a folder or a file whose kind is found by looking.
 *
 * @throws the codes of {@link openSource}.
 */
export async function openPath(
  path: string,
  context: SourceContext,
  signal?: AbortSignal,
): Promise<NamedImageSource & { kind: SourceReference['kind'] }> {
  if (await isFolder(path))
    return { ...(await openSource({ kind: 'oci', folder: path, tag: undefined }, context)), kind: 'oci' }
  try {
    return await openArchive(path, undefined, 'any', context, signal)
  } catch (error) {
    if (!(error instanceof BandSoxError && error.code === 'layer-invalid')) throw error
    const hint = 'it should be an OCI layout, what docker save writes, or a tar of a root file system'
    throw new BandSoxError(error.code, error.message, { cause: error, hint })
  }
}

async function openArchive(
  file: string,
  name: string | undefined,
  expected: 'oci' | 'docker' | 'any',
  context: SourceContext,
  signal?: AbortSignal,
): Promise<NamedImageSource & { kind: SourceReference['kind'] }> {
  await checkKind(file, 'file')
  const { files, release } = await plainTar(file, context.workFolder, signal)
  try {
    // Docker writes both since its version 25: the layout has the digests that it was pulled by.
    if (expected !== 'docker' && (await isLayout(files))) {
      return withRelease({ ...(await openLayout(files, name)), kind: 'oci-archive' as const }, release)
    }
    if (expected !== 'oci' && (await isDockerArchive(files))) {
      return withRelease(
        { ...(await openDockerArchive(files, name, signal)), kind: 'docker-archive' as const },
        release,
      )
    }
    if (expected === 'any') {
      await release() // a file system's own tar is read as a layer is
      return { ...nameless(await openRootfsTar(file, context.platform, signal)), kind: 'rootfs' }
    }
    const missing =
      expected === 'oci' ? 'an OCI layout: it has no index.json' : 'what docker save writes: it has no manifest.json'
    throw new BandSoxError('image-invalid', `${file} is not ${missing}`)
  } catch (error) {
    await release()
    throw error
  }
}

/** Its files are read where they lie, so a compressed one is unpacked first. */
async function plainTar(
  file: string,
  workFolder: string,
  signal?: AbortSignal,
): Promise<{ files: ImageFiles; release: () => Promise<void> }> {
  if (!(await isCompressed(file))) {
    const files = await tarFiles(file, file, signal)
    return { files, release: () => files.close() }
  }
  const { directory, remove } = await makeWorkDirectory(workFolder)
  try {
    const plain = join(directory, 'archive.tar')
    await pipeline(decompress(createReadStream(file), signal), createWriteStream(plain))
    const files = await tarFiles(plain, file, signal)
    const release = async () => {
      await files.close()
      await remove()
    }
    return { files, release }
  } catch (error) {
    await remove()
    throw error
  }
}

/** The engine's own program knows where its images are, on another host too. */
async function openEngine(
  command: string[],
  name: string,
  context: SourceContext,
  signal?: AbortSignal,
): Promise<NamedImageSource> {
  const { directory, remove } = await makeWorkDirectory(context.workFolder)
  try {
    const file = join(directory, 'image.tar')
    await runCommand([...command, '--output', file, name], signal === undefined ? {} : { signal })
    return withRelease(await openArchive(file, undefined, 'any', context, signal), remove)
  } catch (error) {
    await remove()
    throw error
  }
}

const nameless = (source: ImageSource): NamedImageSource => ({ ...source, names: [] })

function withRelease<S extends ImageSource>(source: S, release: () => Promise<void>): S {
  return {
    ...source,
    async close() {
      await source.close()
      await release()
    },
  }
}

async function isCompressed(path: string): Promise<boolean> {
  const file = await open(path)
  try {
    const { buffer, bytesRead } = await file.read(Buffer.alloc(8), 0, 8, 0)
    return compressionOf(buffer.subarray(0, bytesRead)) !== 'none'
  } finally {
    await file.close()
  }
}

async function checkKind(path: string, kind: 'file' | 'folder'): Promise<void> {
  const isRight = (await isFolder(path)) === (kind === 'folder')
  if (!isRight) throw new BandSoxError('bad-request', `${path} is no ${kind}`)
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory()
  } catch (error) {
    if (isSystemError(error, 'ENOENT') || isSystemError(error, 'ENOTDIR')) {
      throw new BandSoxError('file-not-found', `there is no ${path}`, { cause: error })
    }
    throw error
  }
}
