/** Prepares a host: guest kernel, initramfs, base image and an empty disk, all in the storage folder. */
import { BandSoxError } from '@bandsox/sdk'
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

export type PrepareStep = keyof PreparedHost

/**
 * Makes what is missing or damaged; with nothing to do it takes some tens of ms. Safe to run twice at once, and
 * interrupted at any moment: every file appears whole, under its name, or not at all.
 *
 * @throws `host-unsupported`, `host-missing`, `command-failed` when the host cannot deliver; `bad-request`,
 *   `file-not-found`, `checksum-mismatch` for a `kernelSource` that is not usable.
 */
export async function prepareHost(options: PrepareHostOptions): Promise<PreparedHost> {
  const { boot, image, disk } = await prepareSteps(['boot', 'image', 'disk'], options)
  if (boot !== undefined && image !== undefined && disk !== undefined) return { boot, image, disk }
  throw new BandSoxError('internal', 'a step of the preparation was left out')
}

/** The same, of these steps alone, in the order of {@link prepareHost}. @throws its codes. */
export async function prepareSteps(
  steps: readonly PrepareStep[],
  { storage, agentPath, kernelSource, report, signal }: PrepareHostOptions,
): Promise<Partial<PreparedHost>> {
  await makeFolder(storage, 0o700)
  const folders = storageFolders(storage)
  const activity = (text: string) => report?.({ kind: 'activity', text })
  const timed = timedBy(report)
  const prepared: Partial<PreparedHost> = {}
  if (steps.includes('boot')) {
    prepared.boot = await timed('kernel', async () => {
      const { boot, made } = await prepareBoot({
        directory: folders.boot,
        agentPath,
        kernelSource,
        report: activity,
        signal,
      })
      return { result: boot, detail: describeBoot(boot), made: made.length > 0 }
    })
  }
  if (steps.includes('image')) {
    prepared.image = await timed('image', async () => {
      const store = new ImageStore(folders.images)
      await store.open()
      const { image, made } = await prepareBaseImage({ store, platform: hostPlatform(), report: activity, signal })
      const size = (await store.findDisk(image.disk))?.sizeBytes ?? 0
      return { result: image, detail: `${BASE_REFERENCE}, ${formatMib(size)}`, made }
    })
  }
  if (steps.includes('disk')) {
    prepared.disk = await timed('disk', async () => {
      const { path, made } = await emptyDisk({ cacheDirectory: folders.disks, sizeMib: DEFAULT_DISK_MIB, signal })
      return { result: path, detail: `${DEFAULT_DISK_MIB} MiB, sparse`, made }
    })
  }
  return prepared
}

type TimedWork<T> = () => Promise<{ result: T; detail: string; made: boolean }>

/** Tells of each step when it has ended, and how long it took. */
export const timedBy =
  (report: ((event: PrepareEvent) => void) | undefined) =>
  async <T>(step: string, work: TimedWork<T>): Promise<T> => {
    const started = performance.now()
    const { result, detail, made } = await work()
    report?.({ kind: 'step', step, detail, made, tookMs: performance.now() - started })
    return result
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
