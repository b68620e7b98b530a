/** The images of this host: what `bandsox.images` gives to library, server and command line. */
import path from 'node:path'
import { BandSoxError, type ImageInfo, type Images, type PruneResult, type PullOptions } from '@bandsox/sdk'
import { beginFetching, tryCleaning } from '../image/activity.js'
import { BASE_REFERENCE, isBaseReference, prepareBaseImage } from '../image/base.js'
import { removeGarbage, removeImage, removeLayers, usedBytes } from '../image/collect.js'
import { type ImageConfiguration, readConfiguration } from '../image/configuration.js'
import { exportImage } from '../image/export.js'
import type { ImageRecord } from '../image/image-record.js'
import type { ImageStore } from '../image/image-store.js'
import { isPlatform, type Platform, parsePlatform, platformText } from '../image/manifest.js'
import { pullImage } from '../image/pull.js'
import { type NamedImageSource, openPath, openSource, type SourceContext } from '../image/source/open-source.js'
import { formatReference, parseReference, type SourceReference } from '../image/source/reference.js'
import type { CredentialSources } from '../image/source/registry/credentials.js'
import type { ProxySettings } from '../image/source/registry/proxy.js'

export interface ImageSettings {
  /** File of registries and limits; it need not be there. */
  configFile: string | undefined
  credentialSources: CredentialSources
  proxy: ProxySettings
}

export interface ImagesHost {
  store: ImageStore
  settings: ImageSettings
  /** Ids of all sandboxes, by the id of their image. */
  sandboxesByImage: () => Promise<Map<string, string[]>>
  debug: (message: string) => void
}

/** Of QEMU's and Firecracker's guests here, which have the host's processor. */
const architectures: Partial<Record<NodeJS.Architecture, string>> = { x64: 'amd64', arm64: 'arm64' }
const ID_PREFIX = /^(?:sha256:)?([0-9a-f]{6,64})$/
/** Cannot be a name as well. */
const PLAIN_ID = /^(?:sha256:[0-9a-f]{6,64}|[0-9a-f]{64})$/

export const hostPlatform = (): Platform => ({ os: 'linux', architecture: architectures[process.arch] ?? process.arch })

export class LocalImages implements Images {
  readonly #host: ImagesHost
  #configuration: Promise<ImageConfiguration> | undefined

  constructor(host: ImagesHost) {
    this.#host = host
  }

  async pull(reference: string, options: PullOptions = {}): Promise<{ image: ImageInfo; changed: boolean }> {
    const { record, changed } = await this.obtain(reference, { pull: 'always', ...options })
    return { image: await this.#info(record), changed }
  }

  /**
   * The image that a reference means, fetched if the policy says so; its disk is there.
   *
   * @throws the codes of `pullImage` and `openSource`; `image-not-found` when it is not here and must not be fetched.
   */
  async obtain(text: string, options: PullOptions): Promise<{ record: ImageRecord; changed: boolean }> {
    const policy = options.pull ?? 'missing'
    const platform = options.platform === undefined ? hostPlatform() : parsePlatform(options.platform)
    checkRunnable(platform)
    const { store } = this.#host
    await store.open()
    if (policy !== 'always' || PLAIN_ID.test(text)) {
      const present = await this.#findLocal(text)
      if (present !== undefined && isPlatform(parsePlatform(present.platform), platform)) {
        await store.markUsed(present.id)
        return { record: present, changed: false }
      }
    }
    if (isBaseReference(text)) {
      const { image, made } = await prepareBaseImage({ store, platform, signal: options.signal })
      return { record: image, changed: made }
    }
    const reference = await this.#parse(text)
    if (policy === 'never') {
      throw new BandSoxError('image-not-found', `${formatReference(reference)} is not on this host`, {
        hint: `fetch it: bandsox image pull ${text}`,
      })
    }
    const context = await this.#sourceContext(platform)
    const source = await openSource(reference, context, { credentials: options.credentials, signal: options.signal })
    return await this.#pullFrom(source, formatReference(reference), platform, options)
  }

  async import(
    file: string,
    options: PullOptions & { reference?: string } = {},
  ): Promise<{ image: ImageInfo; changed: boolean }> {
    const platform = options.platform === undefined ? hostPlatform() : parsePlatform(options.platform)
    checkRunnable(platform)
    const given = options.reference === undefined ? undefined : registryName(await this.#parse(options.reference))
    await this.#host.store.open()
    const source = await openPath(path.resolve(file), await this.#sourceContext(platform), options.signal)
    const name = given ?? (await this.#nameOf(source))
    const { record, changed } = await this.#pullFrom(
      source,
      name ?? path.resolve(file),
      platform,
      options,
      name !== undefined,
    )
    return { image: await this.#info(record), changed }
  }

  /** The file that sandboxes of an image link to. @throws `image-not-found` when it was removed meanwhile. */
  async diskOf(id: string): Promise<string> {
    const record = await this.#host.store.readImage(id)
    const disk = record === undefined ? undefined : await this.#host.store.findDisk(record.disk)
    if (disk !== undefined) return disk.path
    throw new BandSoxError('image-not-found', `the image ${id} was removed just now`, { hint: 'try again' })
  }

  async export(image: string, target: string, options: { signal?: AbortSignal } = {}): Promise<void> {
    const record = await this.#find(image)
    const references = await this.#referencesOf(record.id)
    await this.#fetchMissingLayers(record, references, options.signal)
    const { store } = this.#host
    await exportImage({ store, image: record, references, path: path.resolve(target), signal: options.signal })
  }

  async get(image: string): Promise<ImageInfo> {
    return await this.#info(await this.#find(image))
  }

  async list(): Promise<ImageInfo[]> {
    await this.#host.store.open()
    const infos = await Promise.all((await this.#host.store.images()).map((record) => this.#info(record)))
    return infos.sort((a, b) => b.lastUsedAt.localeCompare(a.lastUsedAt))
  }

  async remove(image: string, options: { force?: boolean } = {}): Promise<PruneResult> {
    const { store } = this.#host
    const record = await this.#find(image)
    const references = await this.#referencesOf(record.id)
    const named = PLAIN_ID.test(image) ? undefined : await this.#canonical(image)
    if (named !== undefined && references.includes(named) && references.length > 1) {
      await store.removeReference(named)
      return { images: [], freedBytes: 0 }
    }
    return await this.#cleaning(async () => {
      const users = (await this.#host.sandboxesByImage()).get(record.id) ?? []
      if (users.length > 0 && options.force !== true) {
        throw new BandSoxError(
          'image-in-use',
          `${image} is used by ${users.length === 1 ? 'a sandbox' : `${users.length} sandboxes`}: ${users.join(', ')}`,
        )
      }
      return { images: [record.id], freedBytes: await removeImage(store, record) }
    })
  }

  async prune(options: { all?: boolean; layers?: boolean; olderThanMs?: number } = {}): Promise<PruneResult> {
    const { store } = this.#host
    await store.open()
    return await this.#cleaning(async () => {
      const result: PruneResult = { images: [], freedBytes: 0 }
      const users = await this.#host.sandboxesByImage()
      for (const record of await store.images()) {
        const references = await this.#referencesOf(record.id)
        const isWanted = references.includes(BASE_REFERENCE) || (references.length > 0 && options.all !== true)
        const age = Date.now() - (await store.lastUsedAt(record.id)).getTime()
        if (!isWanted && !users.has(record.id) && age >= (options.olderThanMs ?? 0)) {
          result.freedBytes += await removeImage(store, record)
          result.images.push(record.id)
        } else if (options.layers === true) result.freedBytes += await removeLayers(store, record)
      }
      result.freedBytes += await removeGarbage(store)
      return result
    })
  }

  /** Closes the source. */
  async #pullFrom(
    source: NamedImageSource,
    reference: string,
    platform: Platform,
    options: PullOptions,
    keepReference = true,
  ): Promise<{ record: ImageRecord; changed: boolean }> {
    const { store } = this.#host
    try {
      const { limits } = (await this.#readConfiguration()).images
      const { onEvent, signal } = options
      const pulled = await pullImage({ store, source, reference, keepReference, platform, limits, onEvent, signal })
      if (pulled.changed) await this.#makeRoom(pulled.image.id)
      return { record: pulled.image, changed: pulled.changed }
    } finally {
      await source.close()
    }
  }

  /** Keeps to the configured size: layers go first, which only export needs, then images that nobody uses. */
  async #makeRoom(justPulled: string): Promise<void> {
    const { maxBytes } = (await this.#readConfiguration()).images
    const { store } = this.#host
    if (maxBytes === undefined || (await usedBytes(store)) <= maxBytes) return
    const release = await tryCleaning(this.#locks)
    if (release === undefined) return // the next pull will
    try {
      await removeGarbage(store)
      const users = await this.#host.sandboxesByImage()
      const oldestFirst = await this.#byLastUse()
      const isRoomy = async () => (await usedBytes(store)) <= maxBytes
      for (const record of oldestFirst) {
        if (await isRoomy()) return
        await removeLayers(store, record)
      }
      for (const record of oldestFirst) {
        if (await isRoomy()) return
        const references = await this.#referencesOf(record.id)
        if (record.id === justPulled || users.has(record.id) || references.includes(BASE_REFERENCE)) continue
        this.#host.debug(`Removed image: ${references.join(', ') || record.id}, to keep to ${maxBytes} bytes`)
        await removeImage(store, record)
      }
    } finally {
      await release()
    }
  }

  async #byLastUse(): Promise<ImageRecord[]> {
    const { store } = this.#host
    const dated = await Promise.all(
      (await store.images()).map(async (record) => ({ record, usedAt: await store.lastUsedAt(record.id) })),
    )
    return dated.sort((a, b) => a.usedAt.getTime() - b.usedAt.getTime()).map(({ record }) => record)
  }

  async #fetchMissingLayers(record: ImageRecord, references: readonly string[], signal?: AbortSignal): Promise<void> {
    const { blobs } = this.#host.store
    const missing = []
    for (const layer of record.layers) if ((await blobs.sizeOf(layer.digest)) === undefined) missing.push(layer)
    if (missing.length === 0) return
    const [reference] = references
    if (reference === undefined || isBaseReference(reference)) {
      throw new BandSoxError(
        'image-not-found',
        `layers of ${record.id} were pruned, and it has no reference to fetch them by`,
      )
    }
    const context = await this.#sourceContext(parsePlatform(record.platform))
    const release = await beginFetching(this.#locks, signal)
    try {
      const source = await openSource(await this.#parse(reference), context, { signal })
      try {
        for (const layer of missing) await blobs.fetch(layer, source, { signal }).done
      } finally {
        await source.close()
      }
    } finally {
      await release()
    }
  }

  async #cleaning<T>(work: () => Promise<T>): Promise<T> {
    const release = await tryCleaning(this.#locks)
    if (release === undefined) {
      throw new BandSoxError('busy', 'cannot remove images while one is being fetched or removed', {
        hint: 'try again when that has ended',
      })
    }
    try {
      return await work()
    } finally {
      await release()
    }
  }

  get #locks(): string {
    return path.join(this.#host.store.root, 'locks')
  }

  /** @throws `image-not-found`, `ambiguous-name`. */
  async #find(text: string): Promise<ImageRecord> {
    await this.#host.store.open()
    const record = await this.#findLocal(text)
    if (record !== undefined) return record
    throw new BandSoxError('image-not-found', `there is no image ${JSON.stringify(text)} on this host`, {
      hint: `see those that are there: bandsox image list; fetch it: bandsox image pull ${text}`,
    })
  }

  /** By reference, else by id. @returns undefined also for one whose disk is damaged: fetching it again repairs it. */
  async #findLocal(text: string): Promise<ImageRecord | undefined> {
    const { store } = this.#host
    const canonical = PLAIN_ID.test(text) ? undefined : await this.#canonical(text)
    const reference = canonical === undefined ? undefined : await store.readReference(canonical)
    const record = reference === undefined ? await this.#byId(text) : await store.readImage(reference.image)
    if (record === undefined) return undefined
    return (await store.findDisk(record.disk)) === undefined ? undefined : record
  }

  async #byId(text: string): Promise<ImageRecord | undefined> {
    const [, prefix] = ID_PREFIX.exec(text) ?? []
    if (prefix === undefined) return undefined
    const found = (await this.#host.store.images()).filter(({ id }) => id.startsWith(`sha256:${prefix}`))
    if (found.length > 1) {
      const ids = found.map(({ id }) => id).join(', ')
      throw new BandSoxError('ambiguous-name', `${text} means ${found.length} images: ${ids}`, {
        hint: 'use more of its id: bandsox image list',
      })
    }
    return found[0]
  }

  async #canonical(text: string): Promise<string> {
    return isBaseReference(text) ? BASE_REFERENCE : formatReference(await this.#parse(text))
  }

  /** Paths become absolute: the reference is kept, and means the same from everywhere. */
  async #parse(text: string): Promise<SourceReference> {
    const { shortNameRegistry } = await this.#readConfiguration()
    const reference = parseReference(text, { shortNameRegistry })
    if ('folder' in reference) return { ...reference, folder: path.resolve(reference.folder) }
    if ('file' in reference) return { ...reference, file: path.resolve(reference.file) }
    return reference
  }

  /** What the file itself calls its image. */
  async #nameOf(source: NamedImageSource): Promise<string | undefined> {
    for (const name of source.names) {
      // A layout may name its image by a tag alone, which means nothing outside of it.
      if (!name.includes('/') && !name.includes(':')) continue
      try {
        return registryName(await this.#parse(name))
      } catch (error) {
        if (!(error instanceof BandSoxError && error.code === 'bad-request')) throw error
        this.#host.debug(`an imported image has the name ${JSON.stringify(name)}: ${error.message}`)
      }
    }
    return undefined
  }

  async #referencesOf(id: string): Promise<string[]> {
    const all = await this.#host.store.references()
    return all.filter(({ image }) => image === id).map(({ reference }) => reference)
  }

  async #sourceContext(platform: Platform): Promise<SourceContext> {
    const { store, settings, debug } = this.#host
    const { credentialSources, proxy } = settings
    const registries = await this.#readConfiguration()
    return { registries, credentialSources, proxy, workFolder: store.root, platform, debug }
  }

  #readConfiguration(): Promise<ImageConfiguration> {
    this.#configuration ??= readConfiguration(this.#host.settings.configFile)
    return this.#configuration
  }

  async #info(record: ImageRecord): Promise<ImageInfo> {
    const { store } = this.#host
    const kept = await Promise.all(record.layers.map(({ digest }) => store.blobs.sizeOf(digest)))
    return {
      id: record.id,
      references: await this.#referencesOf(record.id),
      digest: record.manifest.digest,
      platform: record.platform,
      config: record.config,
      layers: record.layers.map(({ digest, size }) => ({ digest, sizeBytes: size })),
      diskBytes: (await store.findDisk(record.disk))?.sizeBytes ?? 0,
      layerBytes: kept.reduce<number>((sum, size) => sum + (size ?? 0), 0),
      createdAt: record.createdAt,
      pulledAt: record.pulledAt,
      lastUsedAt: (await store.lastUsedAt(record.id)).toISOString(),
      usedBy: (await this.#host.sandboxesByImage()).get(record.id) ?? [],
    }
  }
}

/** A guest has the host's processor. */
function checkRunnable(platform: Platform): void {
  if (isPlatform(platform, { ...hostPlatform(), ...(platform.variant !== undefined && { variant: platform.variant }) }))
    return
  throw new BandSoxError(
    'platform-not-found',
    `this host runs ${platformText(hostPlatform())}, and cannot run ${platformText(platform)}`,
  )
}

function registryName(reference: SourceReference): string {
  if (reference.kind === 'registry') return formatReference(reference)
  throw new BandSoxError(
    'bad-request',
    `${formatReference(reference)} cannot name an image: a name is like owner/name:tag`,
  )
}
