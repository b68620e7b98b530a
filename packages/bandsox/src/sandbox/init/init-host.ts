/** Gets what a host needs, and prepares its storage: Firecracker with its jailer, a guest kernel, the built-in image, an empty disk. */
import { BandSoxError } from '@bandsox/sdk'
import { type Progress, shown } from '../../artifact/download.js'
import type { Boot } from '../../boot/boot.js'
import type { GivenKernel } from '../../boot/kernel-source.js'
import type { ImageRecord } from '../../image/image-record.js'
import type { ProxySettings } from '../../image/source/registry/proxy.js'
import { makeFolder } from '../../process/make-folder.js'
import type { InstalledFirecracker } from '../../vmm/firecracker/installed.js'
import { type PrepareEvent, type PrepareStep, prepareSteps, timedBy } from '../prepare.js'
import { type Fetching, httpGet, publishedChecksum, removeStaleParts, withDownload } from './downloads.js'
import { checkSha256, parseUrl } from './firecracker-release.js'
import { installFirecracker } from './install-firecracker.js'

/** Debian's bzImage has 14 MB, its ELF 53 MB; one with debug information several hundred. */
const MAX_KERNEL_BYTES = 1024 ** 3

export type InitStep = 'firecracker' | 'kernel' | 'image' | 'disk'

export type InitEvent =
  | PrepareEvent
  /** Some of a file came, at most once per MiB. `url` is without a password. */
  | ({ kind: 'download'; url: string } & Progress)
  /** Another process fetches the same. */
  | { kind: 'waiting'; pid: number }
  | { kind: 'warning'; message: string }

export interface InitOptions {
  /** Such as `1.16.1`. Default: a release that this version of BandSox was made with. */
  firecrackerVersion?: string | undefined
  /** `http:`, `https:` or `file:` URL of a release's archive (`.tgz`), or of a folder with archives, such as a mirror's. Default: the project's own. */
  firecrackerUrl?: string | undefined
  /** Hex SHA-256 of the archive. Default: what is published beside it, as `….tgz.sha256.txt`. */
  firecrackerSha256?: string | undefined
  /** `http:`, `https:` or `file:` URL of a bzImage or an ELF vmlinux. Default: the kernel that is there, else the distribution's. */
  kernelUrl?: string | undefined
  /** Hex SHA-256 of the kernel's file. Default: what is published beside it, as `….sha256.txt` or `….sha256`. */
  kernelSha256?: string | undefined
  /** Fetches Firecracker, and the kernel of `kernelUrl`, though they are there. */
  force?: boolean | undefined
  /** What is left as it is. */
  skip?: readonly InitStep[] | undefined
  report?: ((event: InitEvent) => void) | undefined
  signal?: AbortSignal | undefined
}

export interface InitHost {
  storage: string
  agentPath: string
  proxy: ProxySettings
}

/** What is there now; a step that was left out has none. */
export interface InitializedHost {
  firecracker?: InstalledFirecracker
  boot?: Boot
  image?: ImageRecord
  /** Path of an empty disk. */
  disk?: string
}

/**
 * Does what has not been done; with nothing to do it asks no server, but for the checksum of a `kernelUrl` without `kernelSha256`. Safe to
 * run twice at once, and interrupted at any moment: half a download is gone on with the next time, and nothing is installed by half.
 *
 * @throws The codes of `prepareHost`; `file-not-found`, `host-missing`, `checksum-mismatch`, `artifact-damaged`, `no-space` when something
 *   cannot be had, each with a hint of what to do; `signal.reason`.
 */
export async function initHost(host: InitHost, options: InitOptions = {}): Promise<InitializedHost> {
  const { storage, agentPath, proxy } = host
  const { force = false, skip = [], report, signal } = options
  const isWanted = (step: InitStep) => !skip.includes(step)
  checkTogether(options, isWanted)
  await makeFolder(storage, 0o700)
  await removeStaleParts(storage)
  const { get, close } = httpGet(proxy)
  const fetching: Fetching = {
    storage,
    get,
    onProgress: (url, progress) => report?.({ kind: 'download', url, ...progress }),
    onWait: ({ pid }) => report?.({ kind: 'waiting', pid }),
    signal,
  }
  try {
    const initialized: InitializedHost = {}
    if (isWanted('firecracker')) {
      initialized.firecracker = await timedBy(report)('firecracker', async () => {
        const { firecrackerVersion: version, firecrackerUrl: url, firecrackerSha256: sha256 } = options
        const { installed, made } = await installFirecracker({ version, url, sha256, force }, fetching)
        if (installed.jailer === undefined) report?.({ kind: 'warning', message: noJailer(installed.version) })
        return { result: installed, detail: `${installed.version}, ${installed.firecracker}`, made }
      })
    }
    const steps: PrepareStep[] = []
    if (isWanted('image')) steps.push('image')
    if (isWanted('disk')) steps.push('disk')
    const common = { storage, agentPath, report, signal }
    if (!isWanted('kernel')) return { ...initialized, ...(await prepareSteps(steps, common)) }
    const kernelSource =
      options.kernelUrl === undefined ? undefined : await fetchKernel(options.kernelUrl, options, fetching)
    return { ...initialized, ...(await prepareSteps(['boot', ...steps], { ...common, kernelSource })) }
  } finally {
    await close()
  }
}

function checkTogether(options: InitOptions, isWanted: (step: InitStep) => boolean): void {
  const { kernelUrl, kernelSha256, firecrackerVersion, firecrackerUrl, firecrackerSha256 } = options
  if (kernelSha256 !== undefined && kernelUrl === undefined)
    throw new BandSoxError('bad-request', '--kernel-sha256 is of a kernel that --kernel-url names: give both')
  if (!isWanted('kernel') && kernelUrl !== undefined)
    throw new BandSoxError('bad-request', '--kernel-url and --skip-kernel exclude each other')
  if (
    !isWanted('firecracker') &&
    [firecrackerVersion, firecrackerUrl, firecrackerSha256].some((each) => each !== undefined)
  )
    throw new BandSoxError('bad-request', '--skip-firecracker excludes --firecracker-version, -url and -sha256')
}

/**
 * Gets the kernel's file. It is kept, since a damaged kernel is made anew from it; its name has its digest, so that a second `init` finds the same file, and
 * with it nothing to do.
 */
async function fetchKernel(
  text: string,
  { kernelSha256, force = false }: InitOptions,
  fetching: Fetching,
): Promise<GivenKernel> {
  const url = parseUrl(text, '--kernel-url')
  const given = kernelSha256 === undefined ? undefined : checkSha256(kernelSha256, '--kernel-sha256')
  try {
    const sha256 = given ?? (await publishedChecksum(url, fetching))
    if (sha256 === undefined) {
      throw new BandSoxError('file-not-found', `no checksum is published beside ${shown(url)}`, {
        hint: 'give the checksum, from a source that you trust: --kernel-sha256 HEX',
      })
    }
    const request = { url, sha256, name: `kernel-${sha256}`, maxBytes: MAX_KERNEL_BYTES, isFresh: force }
    return await withDownload(request, fetching, notYet, async (path) => ({ kernel: path, sha256 }))
  } catch (error) {
    if (!(error instanceof BandSoxError) || (error.code !== 'file-not-found' && error.code !== 'host-missing'))
      throw error
    const own = error.code === 'file-not-found' && error.hint !== undefined ? `${error.hint}; or ` : ''
    const offline = 'place the file on this host, and name it: --kernel-url file:///PATH --kernel-sha256 HEX'
    throw new BandSoxError(error.code, `cannot get the guest kernel: ${error.message}`, {
      cause: error,
      hint: `${own}without the network: ${offline}; or leave --kernel-url out, for the distribution's kernel`,
    })
  }
}

/** Nothing is made of it here. */
const notYet = async () => undefined

const noJailer = (version: string): string =>
  `the archive of Firecracker ${version} has no jailer: machines will not be jailed`
