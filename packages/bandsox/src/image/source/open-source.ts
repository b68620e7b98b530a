/** Opens what a reference names, whatever kind of place that is. */
import { stat } from 'node:fs/promises'
import { join } from 'node:path'
import { BandSoxError, isSystemError, type RegistryCredentials } from '@bandsox/sdk'
import { makeWorkDirectory } from '../../artifact/publish.js'
import { runCommand } from '../../process/run.js'
import type { ImageLimits } from '../layer/limits.js'
import type { Platform } from '../manifest.js'
import { isDockerArchive, openDockerArchive } from './docker-archive.js'
import { folderFiles } from './files.js'
import { isLayout, openLayout } from './layout.js'
import type { SourceReference } from './reference.js'
import type { CredentialSources } from './registry/credentials.js'
import type { ProxySettings } from './registry/proxy.js'
import { openRegistry } from './registry/registry.js'
import type { RegistryConfig } from './registry/registry-config.js'
import { openRootfsTar } from './rootfs-tar.js'
import type { ImageSource } from './source.js'
import { openTarArchive } from './tar-archive.js'
import type { TarIndex } from './tar-index.js'

export interface SourceContext {
  registries: RegistryConfig
  credentialSources: CredentialSources
  proxy: ProxySettings
  /** Folder for what must be unpacked first, and for what an engine writes: on the storage's file system. */
  workFolder: string
  platform: Platform
  limits: ImageLimits
  debug: (message: string) => void
  /** Told what takes time before anything of the image is known: "unpacking /tmp/image.tar.gz". */
  onActivity?: ((what: string) => void) | undefined
  /** Who passes on the references of others decides what they may name: files are read, and engines asked, as this user. Default: all. */
  allowedKinds?: ReadonlySet<SourceReference['kind']> | undefined
  /** Whether registries, and what they lead to, may be on this host or in a private network. Default: true. */
  allowLoopback?: boolean
}

export interface OpenOptions {
  credentials?: RegistryCredentials | undefined
  signal?: AbortSignal | undefined
}

/** A source that also knows the names that its file gives the image. */
export type NamedImageSource = ImageSource & { names: string[] }

/**
 * @throws `file-not-found`, `image-invalid`, `image-not-found`, `layer-invalid`, `bad-request`, `host-missing` without the engine,
 *   `command-failed` with what the engine says, `image-too-large`, `permission-denied` for a kind that is not allowed, or
 *   `signal.reason`. Nothing is sent to a registry yet.
 */
export async function openSource(
  reference: SourceReference,
  context: SourceContext,
  { credentials, signal }: OpenOptions = {},
): Promise<NamedImageSource> {
  checkAllowed(reference.kind, context)
  switch (reference.kind) {
    case 'registry': {
      const { registries: config, credentialSources, proxy, debug, allowLoopback = true } = context
      return nameless(
        await openRegistry({ reference, config, credentials, credentialSources, proxy, debug, allowLoopback }),
      )
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
      return nameless(await openRootfsTar(reference.file, { ...context, signal }))
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
 * Opens a folder or a file whose kind is found by looking; so all kinds that it may be must be allowed.
 *
 * @throws the codes of {@link openSource}.
 */
export async function openPath(
  path: string,
  context: SourceContext,
  signal?: AbortSignal,
): Promise<NamedImageSource & { kind: SourceReference['kind'] }> {
  for (const kind of ['oci', 'oci-archive', 'docker-archive', 'rootfs'] as const) checkAllowed(kind, context)
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
  const options = { ...context, signal }
  const isForeign = ({ isCrowded, hasSystemFolder }: TarIndex) => isCrowded || (expected === 'any' && hasSystemFolder)
  const files = await openTarArchive(file, isForeign, options)
  try {
    // Docker writes both since its version 25: the layout has the digests that it was pulled by.
    if (files !== undefined && (expected === 'oci' || (expected === 'any' && (await isLayout(files))))) {
      return { ...(await openLayout(files, name)), kind: 'oci-archive' }
    }
    if (files !== undefined && (expected === 'docker' || (await isDockerArchive(files)))) {
      return { ...(await openDockerArchive(files, name, options)), kind: 'docker-archive' }
    }
  } catch (error) {
    await files?.close()
    throw error
  }
  await files?.close()
  if (expected !== 'any') throw new BandSoxError('image-invalid', `${file} holds more files than an image has`)
  return { ...nameless(await openRootfsTar(file, options)), kind: 'rootfs' } // a file system's own tar is read as a layer is
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
    context.onActivity?.(`saving ${name} from ${command[0]}`)
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

function checkAllowed(kind: SourceReference['kind'], { allowedKinds }: SourceContext): void {
  if (allowedKinds === undefined || allowedKinds.has(kind)) return
  const allowed = [...allowedKinds].join(', ') || 'none'
  throw new BandSoxError('permission-denied', `images of the kind ${kind} are not allowed here, but of: ${allowed}`)
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
