/** A guest kernel on disk: made once, described by a `kernel.json` beside its files, checked when it is used. */
import { createHash } from 'node:crypto'
import { basename, join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { BandSoxError } from '@bandsox/sdk'
import * as z from 'zod'
import { publishDirectory, publishJson, withWorkDirectory } from '../artifact/publish.js'
import {
  checkFile,
  type RecordedFile,
  recordedFileSchema,
  sha256Schema,
  verifyFile,
} from '../artifact/recorded-file.js'
import { readJsonFile } from '../process/json-file.js'
import { unpackKernel } from './kernel-image.js'
import { kernelModuleSchema, unpackModules } from './kernel-modules.js'
import {
  fetchDistributionKernel,
  fetchGivenKernel,
  type GivenKernel,
  type KernelFiles,
  type KernelOrigin,
  kernelOriginSchema,
} from './kernel-source.js'

const MANIFEST = 'kernel.json'

const kernelManifestSchema = z.object({
  version: z.literal(1),
  /** What `uname -r` prints in the guest. */
  release: z.string(),
  origin: kernelOriginSchema,
  /** ELF with a PVH entry: for QEMU's and Firecracker's direct boot. */
  vmlinux: recordedFileSchema,
  /** As published, when that was a bzImage. */
  bzImage: recordedFileSchema.optional(),
  /** In load order. */
  modules: z.array(kernelModuleSchema),
  builtin: z.array(z.string()),
  absent: z.array(z.string()),
  /** Of the kernel and its modules together: equal for two kernels that behave alike. */
  sha256: sha256Schema,
})
type KernelManifest = z.infer<typeof kernelManifestSchema>

type Located<F extends RecordedFile> = F & { path: string }
export type KernelModule = Located<z.infer<typeof kernelModuleSchema>>

export interface GuestKernel extends Omit<KernelManifest, 'version' | 'vmlinux' | 'bzImage' | 'modules'> {
  /** Name of its folder: release and the start of its digest. */
  name: string
  directory: string
  vmlinux: Located<RecordedFile>
  bzImage: Located<RecordedFile> | undefined
  modules: KernelModule[]
}

export interface PrepareKernelOptions {
  /** Folder of kernels; the kernel gets a folder of its own in it. */
  directory: string
  /** Default: the distribution's. */
  source?: GivenKernel | undefined
  /** Hears of what takes long. */
  report?: ((activity: string) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * Fetches a kernel and makes of it what the virtual machine monitors and the initramfs need.
 *
 * @throws the codes of fetching, see kernel-source.ts; `bad-request` when a given kernel is not usable, `artifact-damaged`
 *   when the distribution's is not.
 */
export async function prepareKernel({ directory, source, report, signal }: PrepareKernelOptions): Promise<GuestKernel> {
  return withWorkDirectory(directory, async (work) => {
    const fetching = { directory: work, report, signal }
    const files =
      source === undefined ? await fetchDistributionKernel(fetching) : await fetchGivenKernel(source, fetching)
    report?.('unpacking the kernel')
    try {
      return await publishKernel(directory, files, signal)
    } catch (error) {
      if (source === undefined || !(error instanceof BandSoxError) || error.code !== 'artifact-damaged') throw error
      throw new BandSoxError('bad-request', `cannot use ${source.kernel} as a guest kernel: ${error.message}`, {
        cause: error,
      })
    }
  })
}

/** Makes a kernel's folder from fetched files. */
async function publishKernel(directory: string, files: KernelFiles, signal?: AbortSignal): Promise<GuestKernel> {
  const make = async (unfinished: string): Promise<string> => {
    const image = await unpackKernel(files.image, unfinished, signal)
    const { release } = image
    const modules = await unpackModules({ roots: files.moduleRoots, release, directory: unfinished, signal })
    const sha256 = digestOf(image.vmlinux, modules.modules)
    const manifest: KernelManifest = { version: 1, origin: files.origin, ...image, ...modules, sha256 }
    await publishJson(join(unfinished, MANIFEST), manifest)
    return `kernel-${release}-${sha256.slice(0, 12)}`
  }
  return loadKernel(await publishDirectory(directory, make, (existing) => isIntact(existing, files.origin)))
}

function digestOf(vmlinux: RecordedFile, modules: KernelManifest['modules']): string {
  const parts = [vmlinux.sha256, modules.map(({ name, stage, sha256 }) => [name, stage, sha256])]
  return createHash('sha256').update(JSON.stringify(parts)).digest('hex')
}

/** The same files from another place count as damaged too: else their manifest would go on naming the old place. */
async function isIntact(directory: string, origin: KernelOrigin): Promise<boolean> {
  try {
    const kernel = await loadKernel(directory)
    await verifyKernel(kernel)
    return isDeepStrictEqual(kernel.origin, origin)
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'artifact-damaged') return false
    throw error
  }
}

/**
 * Loads a kernel by its folder, after a quick check of its files.
 *
 * @throws `artifact-damaged` naming the file.
 */
export async function loadKernel(directory: string): Promise<GuestKernel> {
  const manifest = await readJsonFile(join(directory, MANIFEST), kernelManifestSchema)
  if (manifest === undefined) throw new BandSoxError('artifact-damaged', `there is no guest kernel in ${directory}`)
  await Promise.all(filesOf(manifest).map((each) => checkFile(directory, each)))
  const located = <F extends RecordedFile>(recorded: F): Located<F> => ({
    ...recorded,
    path: join(directory, recorded.file),
  })
  const { version: _, vmlinux, bzImage, modules, ...rest } = manifest
  return {
    ...rest,
    name: basename(directory),
    directory,
    vmlinux: located(vmlinux),
    bzImage: bzImage === undefined ? undefined : located(bzImage),
    modules: modules.map(located),
  }
}

/** Where a kernel came from, whatever state its files are in; `undefined` when there is none. */
export async function readKernelOrigin(directory: string): Promise<KernelOrigin | undefined> {
  return (await readJsonFile(join(directory, MANIFEST), kernelManifestSchema))?.origin
}

/**
 * Compares every file with its digest.
 *
 * @throws `artifact-damaged` naming the file.
 */
export async function verifyKernel(kernel: GuestKernel): Promise<void> {
  for (const each of filesOf(kernel)) await verifyFile(kernel.directory, each)
}

const filesOf = ({
  vmlinux,
  bzImage,
  modules,
}: Pick<GuestKernel, 'vmlinux' | 'bzImage' | 'modules'> | KernelManifest) => [
  vmlinux,
  ...(bzImage === undefined ? [] : [bzImage]),
  ...modules,
]
