/** Prepares a host: guest kernel, initramfs, base image and an empty disk, all in the storage folder. */
import { type Boot, loadBootFiles, prepareBoot } from '../boot/boot.js'
import type { GivenKernel } from '../boot/kernel-source.js'
import { BASE_REFERENCE, prepareBaseImage } from '../image/base.js'
import { emptyDisk } from '../image/disk.js'
import type { ImageRecord } from '../image/image-record.js'
import { ImageStore } from '../image/image-store.js'
import { makeFolder } from '../process/make-folder.js'
import { hostPlatform } from './local-images.js'
import { storageFolders } from './storage-folders.js'

export { storageFolders }

/** Size of a sandbox's writable layer when nobody says otherwise. Sparse: it takes what is written. */
export const DEFAULT_DISK_MIB = 4096

export type PrepareEvent =
  /** Something that takes a while begins. */
  | { kind: 'activity'; text: string }
  /** A step has ended; `made` is false when there was nothing to do. */
  | { kind: 'step'; step: string; detail: string; made: boolean; tookMs: number }

export interface PrepareHostOptions {
  storage: string
  /** The guest agent, a static executable. */
  agentPath: string
  /** Default: the kernel that is there, else the distribution's. `distribution`: the distribution's newest. */
  kernelSource?: GivenKernel | 'distribution' | undefined
  report?: ((event: PrepareEvent) => void) | undefined
  signal?: AbortSignal | undefined
}

export interface PreparedHost {
  boot: Boot
  image: ImageRecord
  /** Path of the empty disk of {@link DEFAULT_DISK_MIB}. */
  disk: string
}

/**
 * Makes what is missing or damaged; with nothing to do it takes some tens of ms. Safe to run twice at once, and
 * interrupted at any moment: every file appears whole, under its name, or not at all.
 *
 * @throws `host-unsupported`, `host-missing`, `command-failed` when the host cannot deliver; `bad-request`,
 *   `file-not-found`, `checksum-mismatch` for a `kernelSource` that is not usable.
 */
export async function prepareHost({
  storage,
  agentPath,
  kernelSource,
  report,
  signal,
}: PrepareHostOptions): Promise<PreparedHost> {
  await makeFolder(storage, 0o700)
  const folders = storageFolders(storage)
  const activity = (text: string) => report?.({ kind: 'activity', text })
  const timed = async <T>(
    step: string,
    work: () => Promise<{ result: T; detail: string; made: boolean }>,
  ): Promise<T> => {
    const started = performance.now()
    const { result, detail, made } = await work()
    report?.({ kind: 'step', step, detail, made, tookMs: performance.now() - started })
    return result
  }
  const boot = await timed('kernel', async () => {
    const { boot, made } = await prepareBoot({
      directory: folders.boot,
      agentPath,
      kernelSource,
      report: activity,
      signal,
    })
    return { result: boot, detail: describeBoot(boot), made: made.length > 0 }
  })
  const image = await timed('image', async () => {
    const store = new ImageStore(folders.images)
    await store.open()
    const { image, made } = await prepareBaseImage({ store, platform: hostPlatform(), report: activity, signal })
    const size = (await store.findDisk(image.disk))?.sizeBytes ?? 0
    return { result: image, detail: `${BASE_REFERENCE}, ${formatMib(size)}`, made }
  })
  const disk = await timed('disk', async () => {
    const { path, made } = await emptyDisk({ cacheDirectory: folders.disks, sizeMib: DEFAULT_DISK_MIB, signal })
    return { result: path, detail: `${DEFAULT_DISK_MIB} MiB, sparse`, made }
  })
  return { boot, image, disk }
}

/**
 * The files that a sandbox boots from, after a quick check.
 *
 * @throws `host-missing` when nothing was prepared, `artifact-damaged` naming the file.
 */
export const loadBoot = (storage: string): Promise<Boot> => loadBootFiles(storageFolders(storage).boot)

function describeBoot({ kernel, initramfs }: Boot): string {
  const loadable = `${kernel.modules.length} modules`
  const absent = kernel.absent.length === 0 ? '' : `, absent: ${kernel.absent.join(' ')}`
  return `${kernel.release}, ${loadable}, initramfs ${formatMib(initramfs.sizeBytes)}${absent}`
}

const formatMib = (bytes: number): string => `${(bytes / 1024 / 1024).toFixed(1)} MiB`
