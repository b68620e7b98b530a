/** The sandboxes of this host: what `openBandSox` gives to library, server and command line. */
import type { BandSox, CreateOptions, Sandbox, SandboxInfo } from '@bandsox/sdk'
import { ImageStore } from '../image/image-store.js'
import { cidPool, type NumberPool, portPool } from '../store/lease.js'
import type { SandboxRecord } from '../store/record.js'
import { SandboxStore } from '../store/sandbox-store.js'
import { qemuDriver } from '../vmm/qemu/qemu.js'
import { createSandbox } from './create.js'
import type { Host } from './host.js'
import { type ImageSettings, LocalImages } from './local-images.js'
import { LocalSandbox, sandboxInfo } from './local-sandbox.js'
import { storageFolders } from './prepare.js'
import { settle, tryLock } from './settle.js'

export interface OpenOptions {
  /** Folder of all state. Default: `BANDSOX_STORAGE`, else `/var/lib/bandsox` for root, else `$XDG_DATA_HOME/bandsox`. */
  storage?: string
  /** File of registries and limits. Default: `BANDSOX_CONFIG`, else `$XDG_CONFIG_HOME/bandsox/config.json`. */
  configFile?: string
  /** Told of allocations, releases and failed attempts. */
  debug?: (message: string) => void
  /** Told of what is wrong and was left as it is. Default: `process.emitWarning`. */
  warn?: (message: string) => void
}

/** Registries without configuration, and without credentials. */
const noImageSettings: ImageSettings = {
  configFile: undefined,
  credentialSources: { files: [], environment: {} },
  proxy: {},
}

export class LocalBandSox implements BandSox {
  readonly images: LocalImages
  readonly #host: Host

  private constructor(host: Host) {
    this.#host = host
    this.images = host.images
  }

  /** Opens the storage and sets right what dead processes left in it. */
  static async open(config: {
    storage: string
    shimPath: string
    searchPath: readonly string[]
    images?: ImageSettings
    debug: (message: string) => void
    warn: (message: string) => void
  }): Promise<LocalBandSox> {
    const { storage, shimPath, searchPath, debug, warn } = config
    const store = new SandboxStore(storage)
    const images = new LocalImages({
      store: new ImageStore(storageFolders(storage).images),
      settings: config.images ?? noImageSettings,
      sandboxesByImage: () => sandboxesByImage(store),
      debug,
      warn,
    })
    const host: Host = {
      store,
      images,
      vmm: qemuDriver({ shim: shimPath, searchPath }),
      shimPath,
      debug,
      warn,
    }
    await host.store.open()
    await host.store.finishRemovals()
    const bandsox = new LocalBandSox(host)
    await bandsox.#settledRecords()
    await releaseOrphans(host)
    return bandsox
  }

  async create(image: string, options: CreateOptions = {}): Promise<LocalSandbox> {
    const { record, agent } = await createSandbox(this.#host, image, options)
    return new LocalSandbox(this.#host, record.id, { agent })
  }

  async get(idOrName: string): Promise<Sandbox> {
    const { id } = await this.#host.store.find(idOrName)
    return new LocalSandbox(this.#host, id)
  }

  async list(): Promise<SandboxInfo[]> {
    const records = await this.#settledRecords()
    return await Promise.all(records.map((record) => sandboxInfo(this.#host, record)))
  }

  async [Symbol.asyncDispose](): Promise<void> {
    // Nothing is held between calls; sandboxes that this program created are disposed by their own handles.
  }

  async #settledRecords(): Promise<SandboxRecord[]> {
    const settled: SandboxRecord[] = []
    const { readable, damaged } = await this.#host.store.records()
    for (const { error } of damaged) this.#host.warn(`${error.message}; ${error.hint}`)
    for (const record of readable) {
      const now = await settle(this.#host, record)
      if (now !== undefined) settled.push(now)
    }
    return settled.sort((a, b) => a.createdAt.localeCompare(b.createdAt))
  }
}

/** Numbers whose sandbox is gone: a process was killed between taking one and writing it down. */
async function releaseOrphans(host: Host): Promise<void> {
  if ((await orphans(host)).length === 0) return
  // One process at a time: the second of two that saw the same orphan would take it from its next owner.
  const unlock = await tryLock(host.store.root)
  if (unlock === undefined) return
  try {
    for (const { pool, number, owner } of await orphans(host)) {
      await host.store.leases.release(pool, number, owner)
      host.debug(`Released ${pool.name}: ${number} of ${owner}, which is gone`)
    }
  } finally {
    await unlock()
  }
}

async function orphans(host: Host): Promise<{ pool: NumberPool; number: number; owner: string }[]> {
  const found: { pool: NumberPool; number: number; owner: string }[] = []
  const recorded = new Set(await host.store.ids()) // a damaged record may be that of a running VM
  for (const pool of [cidPool, portPool]) {
    for (const lease of await host.store.leases.list(pool)) {
      if (!recorded.has(lease.owner)) found.push({ pool, ...lease })
    }
  }
  return found
}

async function sandboxesByImage(store: SandboxStore): Promise<Map<string, string[]>> {
  const found = new Map<string, string[]>()
  for (const { id, image } of (await store.records()).readable) {
    found.set(image.digest, [...(found.get(image.digest) ?? []), id])
  }
  return found
}
