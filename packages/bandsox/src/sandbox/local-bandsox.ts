/** The sandboxes of this host: what `openBandSox` gives to library, server and command line. */
import {
  type BandSox,
  type CreateOptions,
  type Limits,
  messageOf,
  type SandboxEvent,
  type SandboxFilter,
  type SandboxInfo,
} from '@bandsox/sdk'
import { ImageStore } from '../image/image-store.js'
import { startDetached } from '../process/detached.js'
import type { AllocatorState } from '../store/numbers.js'
import type { SandboxRecord } from '../store/record.js'
import { filtered } from '../store/sandbox-filter.js'
import { SandboxStore } from '../store/sandbox-store.js'
import type { JailerMode } from '../vmm/firecracker/host.js'
import type { HostTools, Kvm } from '../vmm/host.js'
import { hostVmm, type VmmName } from '../vmm/host-vmm.js'
import { findLayer } from './commit.js'
import { type Configuration, readConfiguration } from './configuration.js'
import { createSandbox, createSandboxRecord, type NewSandbox } from './create.js'
import { type DiskUsage, diskUsage } from './disk-usage.js'
import { sandboxEvents } from './events.js'
import type { Host } from './host.js'
import { type HostInfo, hostInfo } from './host-info.js'
import { type ImportOptions, type ImportReport, importStorage } from './import/import-storage.js'
import { usualLimits } from './limits.js'
import { type ImageSettings, LocalImages } from './local-images.js'
import { LocalSandbox } from './local-sandbox.js'
import { LocalPools } from './pool/local-pools.js'
import { storageFolders } from './prepare.js'
import { type BackgroundJobs, quickStart, refillPools } from './quick-start.js'
import { type Finding, findProblems, reconcile } from './reconcile.js'
import { sandboxInfo } from './sandbox-info.js'
import { settleAndLook } from './settle.js'
import { LocalSnapshots } from './snapshot/local-snapshots.js'
import { makeTemplate } from './template/make-template.js'

export interface OpenOptions {
  /** Folder of all state. Default: `BANDSOX_STORAGE`, else `/var/lib/bandsox` for root, else `$XDG_DATA_HOME/bandsox`. */
  storage?: string
  /** File of registries and limits. Default: `BANDSOX_CONFIG`, else `$XDG_CONFIG_HOME/bandsox/config.json`. */
  configFile?: string
  /** VMM of machines that are started. Default: `BANDSOX_VMM`, else the configuration's, else `auto`. */
  vmm?: VmmName
  /** Whether Firecracker is put into a jail. Default: `BANDSOX_JAIL`, else the configuration's, else `auto`. */
  jailer?: JailerMode
  /** Told of allocations, releases and failed attempts. */
  debug?: (message: string) => void
  /** Told of what was done. */
  info?: (message: string) => void
  /** Told of what is wrong and was left as it is. Default: `process.emitWarning`. */
  warn?: (message: string) => void
}

/** Registries without configuration, and without credentials. */
const noImageSettings: ImageSettings = {
  configFile: undefined,
  credentialSources: { files: [], environment: {} },
  proxy: {},
}

export interface LocalConfig {
  storage: string
  shimPath: string
  searchPath: readonly string[]
  /** Where Firecracker and its jailer are, when a user says so. */
  firecracker?: { program?: string | undefined; jailer?: string | undefined }
  /** What is known of KVM already. Default: it is found out. */
  kvm?: Kvm
  vmm?: VmmName | undefined
  jailer?: JailerMode | undefined
  images?: ImageSettings
  defaultLimits?: Partial<Limits>
  debug?: (message: string) => void
  info?: (message: string) => void
  warn: (message: string) => void
  /** Our own command line, for what goes on when this process has ended; absent: nothing does. */
  cliPath?: string
  /** Whether new sandboxes start from templates. Default: the configuration's. */
  templates?: boolean | undefined
  /** What is done about what dead processes have left. Default `apply`; `all`: also what loses data. */
  reconcile?: 'apply' | 'all' | 'look'
  /** Told of each of these before it is set right. */
  onFinding?: (finding: Finding) => void
  /** Sandbox whose operation is given up though its process cannot be seen. */
  forget?: string
}

export class LocalBandSox implements BandSox {
  readonly images: LocalImages
  readonly snapshots: LocalSnapshots
  readonly pools: LocalPools
  readonly #host: Host
  readonly #tools: HostTools
  readonly #jobs: BackgroundJobs | undefined

  private constructor(host: Host, tools: HostTools, jobs: BackgroundJobs | undefined) {
    this.#host = host
    this.#tools = tools
    this.images = host.images
    this.snapshots = new LocalSnapshots(host)
    this.pools = new LocalPools(host, (id) => jobs?.fillPool(id))
    this.#jobs = jobs
  }

  /**
   * Opens the storage and sets right what dead processes left in it.
   *
   * @throws as `SandboxStore.open`.
   */
  static async open(config: LocalConfig): Promise<LocalBandSox> {
    const host = await openHost(config)
    const tell = ({ subject, problem, action }: Finding) => host.info(`${subject}: ${problem}: ${action}`)
    const { onFinding = tell, forget } = config
    try {
      if (config.reconcile === 'look') {
        for (const finding of await findProblems(host)) onFinding(finding)
      } else {
        if (forget !== undefined) await host.store.forgetOperation((await host.store.find(forget)).id)
        await reconcile(host, { onAction: onFinding, isAsked: config.reconcile === 'all' })
      }
    } catch (error) {
      host.store.close()
      throw error
    }
    const jobs = backgroundJobs(host, config)
    await refillPools(host, jobs)
    return new LocalBandSox(host, toolsOf(config), jobs)
  }

  async create(image: string, options: CreateOptions = {}): Promise<LocalSandbox> {
    const isCold = options.cold === true || options.tracksChanges === true
    const quick = isCold ? undefined : quickStart(this.#host, this.#jobs)
    const { record, agent } = await createSandbox(this.#host, image, options, quick)
    return new LocalSandbox(this.#host, record.id, { agent, record })
  }

  /**
   * Makes now what later sandboxes of the image, and of this shape, will start from.
   *
   * @returns False when there is one already, or somebody makes it.
   */
  async makeTemplate(image: string, options: CreateOptions = {}): Promise<boolean> {
    return await makeTemplate(this.#host, await createSandboxRecord(this.#host, image, options), options.signal)
  }

  async get(idOrName: string): Promise<LocalSandbox> {
    const { id } = await this.#host.store.find(idOrName)
    return new LocalSandbox(this.#host, id)
  }

  async list(filter: SandboxFilter = {}): Promise<SandboxInfo[]> {
    // What has just ended may match only afterwards, or not any more.
    const looked = await Promise.all((await this.#host.store.list()).map((record) => this.#look(record)))
    const found = looked.filter((each) => each !== undefined)
    const runs = new Map(found.map(({ record, run }) => [record, run]))
    // What waits in a pool is nobody's.
    const matching = filtered(
      [...runs.keys()].filter(({ pool }) => pool === undefined),
      filter,
    )
    return await Promise.all(matching.map((record) => sandboxInfo(this.#host, record, runs.get(record))))
  }

  /** What cannot be settled is shown as it was written down: it must not keep anybody from the others. */
  async #look(record: SandboxRecord): ReturnType<typeof settleAndLook> {
    try {
      return await settleAndLook(this.#host, record)
    } catch (error) {
      this.#host.warn(`sandbox ${record.id}: ${messageOf(error)}`)
      return { record }
    }
  }

  events(options: { follow?: boolean; after?: number; signal?: AbortSignal } = {}): AsyncGenerator<SandboxEvent> {
    return sandboxEvents(this.#host, options)
  }

  /** CIDs and ports, in the shape of the earlier project's files. */
  async numbers(): Promise<AllocatorState> {
    return await this.#host.store.numbers()
  }

  /** Lets CIDs and ports begin anew. @throws `wrong-state` while a sandbox holds any. */
  async resetNumbers(): Promise<void> {
    await this.#host.store.resetNumbers()
  }

  async diskUsage(): Promise<DiskUsage> {
    return await diskUsage(this.#host)
  }

  async hostInfo(): Promise<HostInfo> {
    return await hostInfo(this.#host, this.#tools)
  }

  /**
   * Imports the VMs of the earlier project, in Python; its storage is only read.
   *
   * @throws as `importStorage`.
   */
  async importFrom(folder: string, options: ImportOptions = {}): Promise<ImportReport> {
    return await importStorage(this.#host, folder, options)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    this.#host.store.close()
  }
}

const toolsOf = ({ shimPath, searchPath, kvm, firecracker, storage }: LocalConfig): HostTools => ({
  shim: shimPath,
  searchPath,
  kvm,
  firecracker: { ...firecracker, storage },
})

function backgroundJobs(host: Host, { cliPath, storage, vmm, jailer }: LocalConfig): BackgroundJobs | undefined {
  if (cliPath === undefined) return undefined
  // What they make is to be of use to who has had them started.
  const chosen = [...(vmm === undefined ? [] : ['--vmm', vmm]), ...(jailer === undefined ? [] : ['--jailer', jailer])]
  const start = (words: string[]) =>
    startDetached([process.execPath, cliPath, '--storage', storage, ...chosen, ...words], (error) =>
      host.warn(`cannot start bandsox ${words.join(' ')}: ${error.message}`),
    )
  return {
    makeTemplate: ({ record: { image, vcpu, memoryMib, diskMib, vsock } }: NewSandbox) =>
      start([
        ...['template', 'make', image.reference, '--pull', 'never', '--vsock', vsock],
        ...['--vcpu', String(vcpu), '--mem', String(memoryMib), '--disk-size', String(diskMib)],
      ]),
    fillPool: (id) => start(['pool', 'fill', id]),
  }
}

/** What all parts of the library work with. Its store is the caller's to close. @throws as `SandboxStore.open`. */
export async function openHost(config: LocalConfig): Promise<Host> {
  const { storage, shimPath, warn, debug = () => undefined, info = () => undefined } = config
  const settings = config.images ?? noImageSettings
  const store = await SandboxStore.open(storage, debug)
  let configuration: Promise<Configuration> | undefined
  const readOnce = () => {
    configuration ??= readConfiguration(settings.configFile).catch((error: unknown) => {
      configuration = undefined // it may be mended before the next try
      throw error
    })
    return configuration
  }
  const readConfigured = async () => {
    const configuration = await readOnce()
    const enabled = config.templates ?? configuration.templates.enabled
    return { ...configuration, templates: { ...configuration.templates, enabled } }
  }
  const { vmm, choice } = hostVmm(toolsOf(config), async () => {
    const { vmm, jailer } = await readOnce()
    return { vmm: config.vmm ?? vmm, jailer: config.jailer ?? jailer }
  })
  const host: Host = {
    store,
    images: new LocalImages({
      store: new ImageStore(storageFolders(storage).images),
      settings,
      sandboxesByImage: () => store.idsByImage(),
      layers: { find: (sandbox) => findLayer(host, sandbox) },
      debug,
      warn,
    }),
    vmm,
    vmmChoice: choice,
    shimPath,
    defaultLimits: { ...usualLimits, ...config.defaultLimits },
    configuration: readConfigured,
    debug,
    info,
    warn,
  }
  return host
}
