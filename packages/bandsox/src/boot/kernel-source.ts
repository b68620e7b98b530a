/** Obtains the files of a guest kernel: the distribution's packages, or what the user names. */
import { createWriteStream } from 'node:fs'
import { copyFile, mkdir, readdir, stat } from 'node:fs/promises'
import { dirname, join, resolve } from 'node:path'
import { Readable, Transform } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { fileURLToPath } from 'node:url'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import * as z from 'zod'
import { downloadPackages, resolvePackages, unpackPackage } from '../artifact/apt.js'
import { digestFile } from '../artifact/recorded-file.js'
import { runCommand } from '../process/run.js'
import { kernelChoice, readDistribution } from './distribution.js'

/** Debian's bzImage has 14 MB, its ELF 53 MB; one with debug information several hundred. */
const MAX_KERNEL_BYTES = 1024 * 1024 * 1024

/** Made by the kernel's build, whether it makes modules or not. */
const BUILTIN_LIST = 'modules.builtin'

/** A kernel that the user names instead of the distribution's. */
export interface GivenKernel {
  /** Path, or `http:`, `https:` or `file:` URL, of a bzImage or an ELF vmlinux. */
  kernel: string
  /**
   * Folder or tar with its modules, wherever in it; none for a kernel with everything built in, whose `modules.builtin` is
   * looked for beside it, where the kernel's own build leaves it.
   */
  modules?: string | undefined
  /** Lower-case hex digest that the kernel's file must have. */
  sha256?: string | undefined
}

/** Where a kernel came from, as its manifest says. */
export const kernelOriginSchema = z.discriminatedUnion('kind', [
  z.object({ kind: z.literal('packages'), packages: z.array(z.string()) }),
  z.object({
    kind: z.literal('given'),
    kernel: z.string(),
    modules: z.string().optional(),
    /** Of a local file: tells that it has changed since. */
    sizeBytes: z.int().optional(),
    mtimeMs: z.int().optional(),
  }),
])
export type KernelOrigin = z.infer<typeof kernelOriginSchema>

export interface KernelFiles {
  origin: KernelOrigin
  /** Path of a bzImage or ELF, in the work folder. */
  image: string
  /** Folders to look for modules in, recursively. */
  moduleRoots: string[]
}

export interface FetchOptions {
  /** An empty folder for what is fetched, removed by the caller. */
  directory: string
  report?: ((activity: string) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * The distribution's newest kernel for virtual machines, as apt's `name=version`.
 *
 * @throws `host-unsupported` on an unknown distribution, `host-missing` when apt does not know its packages.
 */
export async function findDistributionKernel(signal?: AbortSignal): Promise<string[]> {
  const { metaPackage, parts } = kernelChoice(await readDistribution())
  return resolvePackages(metaPackage, parts, signal)
}

/** @throws the codes of {@link findDistributionKernel}; `command-failed` when apt cannot deliver. */
export async function fetchDistributionKernel({ directory, report, signal }: FetchOptions): Promise<KernelFiles> {
  const packages = await findDistributionKernel(signal)
  report?.(`downloading ${packages.join(' ')}`)
  const debs = await downloadPackages(packages, directory, signal)
  return { origin: { kind: 'packages', packages }, ...(await unpackKernelPackages(debs, directory, signal)) }
}

/** Unpacks kernel packages that lie on this host. */
export async function unpackKernelPackages(
  debs: readonly string[],
  directory: string,
  signal?: AbortSignal,
): Promise<Pick<KernelFiles, 'image' | 'moduleRoots'>> {
  const root = join(directory, 'unpacked')
  await mkdir(root)
  for (const deb of debs) await unpackPackage(deb, root, signal)
  const image = (await readdir(join(root, 'boot'))).find((name) => name.startsWith('vmlinuz-'))
  if (image === undefined) throw new BandSoxError('artifact-damaged', `no boot/vmlinuz-* in ${debs.join(' ')}`)
  return { image: join(root, 'boot', image), moduleRoots: [root] }
}

/**
 * @throws `file-not-found`, `bad-request` for a URL that does not deliver or a file beyond 1 GiB, `checksum-mismatch`.
 */
export async function fetchGivenKernel(
  given: GivenKernel,
  { directory, report, signal }: FetchOptions,
): Promise<KernelFiles> {
  const image = join(directory, 'kernel')
  if (/^https?:/.test(given.kernel)) {
    report?.(`downloading ${given.kernel}`)
    await download(given.kernel, image, signal)
  } else {
    await copyKernel(localPath(given.kernel), image)
  }
  if (given.sha256 !== undefined) {
    const found = await digestFile(image)
    if (found !== given.sha256) {
      throw new BandSoxError('checksum-mismatch', `${given.kernel} has the SHA-256 ${found} instead of ${given.sha256}`)
    }
  }
  const moduleRoots =
    given.modules === undefined
      ? await takeBuiltinList(given.kernel, directory)
      : [await openModules(localPath(given.modules), directory, signal)]
  return { origin: await givenOrigin(given), image, moduleRoots }
}

/** @returns A folder with nothing but the list of what the kernel has built in; none when no list lies beside it. */
async function takeBuiltinList(kernel: string, directory: string): Promise<string[]> {
  if (/^https?:/.test(kernel)) return []
  const root = join(directory, 'builtin')
  await mkdir(root)
  try {
    await copyFile(join(dirname(localPath(kernel)), BUILTIN_LIST), join(root, BUILTIN_LIST))
    return [root]
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return [] // the kernel does as well without
    throw error
  }
}

/** What tells whether a given kernel is the one that was prepared before. */
export async function givenOrigin({ kernel, modules }: GivenKernel): Promise<KernelOrigin> {
  const named = { kind: 'given' as const, kernel, ...(modules === undefined ? {} : { modules }) }
  if (/^https?:/.test(kernel)) return named
  const { size, mtimeMs } = await statGiven(localPath(kernel))
  return { ...named, kernel: localPath(kernel), sizeBytes: size, mtimeMs: Math.trunc(mtimeMs) }
}

const localPath = (source: string): string => (source.startsWith('file:') ? fileURLToPath(source) : resolve(source))

async function statGiven(path: string) {
  return stat(path).catch((error: unknown) => {
    if (isSystemError(error, 'ENOENT'))
      throw new BandSoxError('file-not-found', `there is no kernel ${path}`, { cause: error })
    throw error
  })
}

async function copyKernel(path: string, target: string): Promise<void> {
  const { size } = await statGiven(path)
  if (size > MAX_KERNEL_BYTES)
    throw new BandSoxError('bad-request', `${path} is no kernel: it has ${size} bytes, over ${MAX_KERNEL_BYTES}`)
  await copyFile(path, target)
}

async function download(url: string, target: string, signal?: AbortSignal): Promise<void> {
  let sizeBytes = 0
  const bounded = new Transform({
    transform(chunk: Buffer, _encoding, done) {
      sizeBytes += chunk.length
      done(sizeBytes > MAX_KERNEL_BYTES ? new Error(`it has more than ${MAX_KERNEL_BYTES} bytes`) : null, chunk)
    },
  })
  try {
    const response = await fetch(url, signal === undefined ? {} : { signal })
    if (!response.ok || response.body === null)
      throw new Error(`the server answers ${response.status} ${response.statusText}`)
    await pipeline(Readable.fromWeb(response.body), bounded, createWriteStream(target))
  } catch (error) {
    signal?.throwIfAborted()
    throw new BandSoxError('bad-request', `cannot download ${url}: ${messageOf(error)}`, { cause: error })
  }
}

async function openModules(path: string, directory: string, signal?: AbortSignal): Promise<string> {
  const found = await stat(path).catch((error: unknown) => {
    if (isSystemError(error, 'ENOENT'))
      throw new BandSoxError('file-not-found', `there are no modules at ${path}`, { cause: error })
    throw error
  })
  if (found.isDirectory()) return path
  const root = join(directory, 'modules')
  await mkdir(root)
  await runCommand(['tar', '-x', '-C', root, '--no-same-owner', '-f', path], signal === undefined ? {} : { signal })
  return root
}
