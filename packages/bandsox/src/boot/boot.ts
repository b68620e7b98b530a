/** What a sandbox boots with: a kernel and an initramfs that belong together, named by one `boot.json`. */
import { readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { isDeepStrictEqual } from 'node:util'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import * as z from 'zod'
import { publishJson, removeAbandoned } from '../artifact/publish.js'
import {
  checkFile,
  publishRecorded,
  type RecordedFile,
  recordedFileSchema,
  sha256Schema,
  verifyFile,
} from '../artifact/recorded-file.js'
import { readJsonFile } from '../process/json-file.js'
import { buildInitramfs, digestAgent, initramfsKey } from './initramfs.js'
import { type GuestKernel, loadKernel, prepareKernel, readKernelOrigin, verifyKernel } from './kernel.js'
import { findDistributionKernel, type GivenKernel, givenOrigin } from './kernel-source.js'

const MANIFEST = 'boot.json'
const INITRAMFS = /^initramfs-[0-9a-f]{12}\.cpio$/
const SUPERSEDED_KEPT_MS = 60 * 60 * 1000

const bootManifestSchema = z.object({
  version: z.literal(1),
  /** Name of the kernel's folder beside this file. */
  kernel: z.string().regex(/^kernel-[^/]+$/),
  initramfs: recordedFileSchema,
  initramfsKey: sha256Schema,
})

export interface Boot {
  kernel: GuestKernel
  initramfs: RecordedFile & { path: string }
}

export interface PrepareBootOptions {
  directory: string
  agentPath: string
  /** Default: the kernel that is there, else the distribution's. `distribution`: the distribution's newest. */
  kernelSource?: GivenKernel | 'distribution' | undefined
  report?: ((activity: string) => void) | undefined
  signal?: AbortSignal | undefined
}

/**
 * Makes what is missing, damaged or made from something else. Files that a VM uses are superseded, never changed.
 *
 * @returns The boot files, and which of them were made now.
 * @throws the codes of prepareKernel; `host-missing` when there is no agent.
 */
export async function prepareBoot(
  options: PrepareBootOptions,
): Promise<{ boot: Boot; made: ('kernel' | 'initramfs')[] }> {
  const { directory, agentPath, kernelSource, report, signal } = options
  const agentSha256 = await digestAgent(agentPath)
  const manifest = await withoutDamaged(() => readJsonFile(join(directory, MANIFEST), bootManifestSchema))
  const present = manifest && (await withoutDamaged(() => loadKernel(join(directory, manifest.kernel))))
  const kept = present !== undefined && (await isWanted(present, kernelSource, signal)) ? present : undefined
  if (kept !== undefined && manifest?.initramfsKey === initramfsKey(kept, agentSha256)) {
    const boot = await withoutDamaged(() => loadBootFiles(directory))
    if (boot !== undefined) return { boot, made: [] }
  }
  await removeAbandoned(directory)
  const source = kernelSource ?? (manifest && (await givenBefore(join(directory, manifest.kernel))))
  const kernel =
    kept ?? (await prepareKernel({ directory, source: source === 'distribution' ? undefined : source, report, signal }))
  const key = initramfsKey(kernel, agentSha256)
  const file = `initramfs-${key.slice(0, 12)}.cpio`
  const initramfs = await publishRecorded(directory, file, async (path) => {
    await buildInitramfs({ kernel, agentPath, output: path })
  })
  await publishJson(join(directory, MANIFEST), { version: 1, kernel: kernel.name, initramfs, initramfsKey: key })
  await removeSuperseded(directory, file)
  return { boot: await loadBootFiles(directory), made: kept === undefined ? ['kernel', 'initramfs'] : ['initramfs'] }
}

/** What is damaged is made anew, so here it counts as absent. */
async function withoutDamaged<T>(load: () => Promise<T>): Promise<T | undefined> {
  try {
    return await load()
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'artifact-damaged') return undefined
    throw error
  }
}

/** What a damaged kernel is made anew from: one that the user gave must not turn into the distribution's. */
async function givenBefore(kernelDirectory: string): Promise<GivenKernel | undefined> {
  const origin = await withoutDamaged(() => readKernelOrigin(kernelDirectory))
  return origin?.kind === 'given' ? { kernel: origin.kernel, modules: origin.modules } : undefined
}

async function isWanted(
  kernel: GuestKernel,
  source: PrepareBootOptions['kernelSource'],
  signal?: AbortSignal,
): Promise<boolean> {
  if (source === undefined) return true
  if (source === 'distribution') {
    if (kernel.origin.kind !== 'packages') return false
    return isDeepStrictEqual(kernel.origin.packages, await findDistributionKernel(signal))
  }
  const published = kernel.bzImage ?? kernel.vmlinux
  if (source.sha256 !== undefined && source.sha256 !== published.sha256) return false
  return isDeepStrictEqual(kernel.origin, await givenOrigin(source))
}

/**
 * An agent under development would fill the disk with archives. Recent ones stay: a sandbox may be about to link one, or
 * another process about to name it.
 */
async function removeSuperseded(directory: string, current: string): Promise<void> {
  for (const name of await readdir(directory)) {
    if (!INITRAMFS.test(name) || name === current) continue
    const path = join(directory, name)
    if (Date.now() - (await changedAt(path)) > SUPERSEDED_KEPT_MS) await rm(path, { force: true })
  }
}

async function changedAt(path: string): Promise<number> {
  try {
    return (await stat(path)).ctimeMs
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return Date.now() // another process was quicker to remove it
    throw error
  }
}

/**
 * Loads the boot files after a quick check of size and time.
 *
 * @throws `host-missing` when nothing was prepared, `artifact-damaged` naming the file.
 */
export async function loadBootFiles(directory: string): Promise<Boot> {
  const { kernel, initramfs } = await readManifest(directory)
  await checkFile(directory, initramfs)
  return {
    kernel: await loadKernel(join(directory, kernel)),
    initramfs: { ...initramfs, path: join(directory, initramfs.file) },
  }
}

/**
 * Digests of what a machine boots with, without a look at the files themselves.
 *
 * @throws `host-missing` when nothing was prepared.
 */
export async function bootDigests(directory: string): Promise<{ kernel: string; initramfs: string }> {
  const { kernel, initramfs } = await readManifest(directory)
  return { kernel, initramfs: initramfs.sha256 } // a kernel's name ends in the digest of all its files
}

async function readManifest(directory: string): Promise<z.infer<typeof bootManifestSchema>> {
  const manifest = await readJsonFile(join(directory, MANIFEST), bootManifestSchema)
  if (manifest !== undefined) return manifest
  throw new BandSoxError('host-missing', `there is no guest kernel in ${directory}`, {
    hint: 'prepare this host: npm run setup',
  })
}

/**
 * Compares every boot file with its digest.
 *
 * @throws `artifact-damaged` naming the file.
 */
export async function verifyBootFiles(directory: string): Promise<void> {
  const { kernel, initramfs } = await loadBootFiles(directory)
  await verifyKernel(kernel)
  await verifyFile(directory, initramfs)
}
