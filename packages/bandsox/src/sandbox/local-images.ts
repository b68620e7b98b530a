/** The images of this host: what `bandsox.images` gives to library, server and command line. */
import path from 'node:path'
import {
  BandSoxError,
  type CommitOptions,
  type ImageInfo,
  type Images,
  messageOf,
  type PruneResult,
  type PullOptions,
} from '@bandsox/sdk'
import { withWorkDirectory } from '../artifact/publish.js'
import { beginFetching, tryCleaning } from '../image/activity.js'
import { BASE_REFERENCE, isBaseReference, prepareBaseImage } from '../image/base.js'
import { removeGarbage, removeImage, removeLayers } from '../image/collect.js'
import { commitSource } from '../image/commit.js'
import { exportImage } from '../image/export.js'
import type { ImageRecord, ReferenceRecord } from '../image/image-record.js'
import type { ImageStore } from '../image/image-store.js'
import type { ImageLimits } from '../image/layer/limits.js'
import type { LayerFile } from '../image/layer-file.js'
import { isPlatform, type Platform, parsePlatform, platformText } from '../image/manifest.js'
import { type PullImageOptions, pullImage } from '../image/pull.js'
import { hasEarlierDisk, renewDisk } from '../image/renew.js'
import { isOfRegistry, isRoomy, makeRoom } from '../image/room.js'
import { type NamedImageSource, openPath, openSource, type SourceContext } from '../image/source/open-source.js'
import { formatReference, parseReference, type SourceReference } from '../image/source/reference.js'
import type { CredentialSources } from '../image/source/registry/credentials.js'
import type { ProxySettings } from '../image/source/registry/proxy.js'
import type { Descriptor } from '../image/source/source.js'
import { checkedChanges } from './commit-options.js'
import { type Configuration, readConfiguration } from './configuration.js'
import { imageInfos } from './image-info.js'

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
  layers: SandboxLayers
  debug: (message: string) => void
  /** What is wrong and was left as it is. */
  warn: (message: string) => void
}

/** The writable layers of sandboxes and snapshots, for `commit`. */
export interface SandboxLayers {
  /** @throws `not-found`, `ambiguous-name`, `busy`, `wrong-state`, `snapshot-damaged`, `bad-request` when it has none. */
  find(sandboxOrSnapshot: string): Promise<SandboxLayer>
}

export interface SandboxLayer {
  /** For messages: `sandbox sbx_…`, `snapshot snp_…`. */
  title: string
  /** That it was made from. */
  image: { reference: string; digest: string }
  /**
   * Packs it as a layer of an image; the disk is only read. A sandbox that runs stands still for a moment.
   *
   * @throws What starting a machine throws, and what a standstill throws; `no-space`; `image-too-large`; `timeout`.
   */
  pack(limits: ImageLimits, options: PackOptions): Promise<LayerFile>
}

export interface PackOptions {
  /** Path of the file to make. */
  file: string
  /** What takes time. */
  onActivity: (what: string) => void
  /** A sandbox goes on, after so many milliseconds. */
  onStoodStill: (sandbox: string, pauseMs: number) => void
  /** What is not in the layer. */
  onWarning: (message: string) => void
  signal: AbortSignal | undefined
}

/** Of QEMU's and Firecracker's guests here, which have the host's processor. */
const architectures: Partial<Record<NodeJS.Architecture, string>> = { x64: 'amd64', arm64: 'arm64' }
const ID_PREFIX = /^(?:sha256:)?([0-9a-f]{6,64})$/
/** For what runs an image: few digits can be forged, and may be the name of another one. */
const LONG_ID = /^(?:sha256:)?([0-9a-f]{12,64})$/
/** Cannot be a name as well. */
const PLAIN_ID = /^(?:sha256:[0-9a-f]{6,64}|[0-9a-f]{64})$/

export const hostPlatform = (): Platform => ({ os: 'linux', architecture: architectures[process.arch] ?? process.arch })

export class LocalImages implements Images {
  readonly #host: ImagesHost
  #configuration: Promise<Configuration> | undefined

  constructor(host: ImagesHost) {
    this.#host = host
  }

  async pull(reference: string, options: PullOptions = {}): Promise<{ image: ImageInfo; changed: boolean }> {
    return await this.#held(options, async () => await this.obtain(reference, { pull: 'always', ...options }))
  }

  /**
   * Keeps images from being removed until the release: from finding one to holding it in another way.
   *
   * @returns The release.
   */
  async hold(signal?: AbortSignal): Promise<() => Promise<void>> {
    await this.#host.store.open()
    return await beginFetching(this.#locks, signal)
  }

  /**
   * The image that a reference means, fetched if the policy says so; its disk is there. To be called under `hold`.
   *
   * @throws the codes of `pullImage` and `openSource`; `image-not-found` when it is not here and must not be fetched.
   */
  async obtain(text: string, options: PullOptions): Promise<{ record: ImageRecord; changed: boolean }> {
    const policy = options.pull ?? 'missing'
    const platform = options.platform === undefined ? hostPlatform() : parsePlatform(options.platform)
    checkRunnable(platform)
    const { store } = this.#host
    if (policy !== 'always' || PLAIN_ID.test(text)) {
      const present = await this.#recordOf(text, LONG_ID)
      const hasDisk = present !== undefined && (await store.findDisk(present.disk)) !== undefined // else it is made anew
      if (hasDisk && isPlatform(parsePlatform(present.platform), platform)) {
        store.markUsed(present.id)
        return { record: await this.#withDiskOfToday(present, options), changed: false }
      }
    }
    const canonical = PLAIN_ID.test(text) ? text : await this.#canonical(text)
    if (policy === 'never') {
      throw new BandSoxError('image-not-found', `${canonical} is not on this host`, {
        hint: `fetch it: bandsox image pull ${text}`,
      })
    }
    if (isBaseReference(text)) {
      const { image, made } = await prepareBaseImage({ store, platform, signal: options.signal })
      return { record: image, changed: made }
    }
    if (policy === 'missing') await this.#checkFetchable(canonical)
    const reference = await this.#parse(text)
    const context = await this.#sourceContext(platform, options.onEvent)
    const source = await openSource(reference, context, { credentials: options.credentials, signal: options.signal })
    const origin = reference.kind === 'registry' ? 'registry' : 'local'
    return await this.#pullFrom(source, { ...options, reference: canonical, platform, origin })
  }

  async import(
    file: string,
    options: PullOptions & { reference?: string } = {},
  ): Promise<{ image: ImageInfo; changed: boolean }> {
    const platform = options.platform === undefined ? hostPlatform() : parsePlatform(options.platform)
    checkRunnable(platform)
    const given = options.reference === undefined ? undefined : registryName(await this.#parse(options.reference))
    return await this.#held(options, async () => {
      const source = await openPath(
        path.resolve(file),
        await this.#sourceContext(platform, options.onEvent),
        options.signal,
      )
      const { free, taken } = await this.#namesOf(source, options.onEvent)
      const name = given ?? free
      const pulled = await this.#pullFrom(source, {
        ...{ ...options, platform, origin: 'local' },
        reference: name ?? path.resolve(file),
        keepReference: name !== undefined,
      })
      const other = taken.find(({ image }) => image !== pulled.record.id)
      if (name === undefined && other !== undefined) {
        const message = `the file calls its image ${other.reference}, as another one is called here: it gets no name (see --reference)`
        options.onEvent?.({ kind: 'warning', message })
      }
      return pulled
    })
  }

  /** The file that sandboxes of an image link to. @throws `image-not-found` when it was removed meanwhile. */
  async diskOf(id: string): Promise<string> {
    const record = await this.#host.store.readImage(id)
    const disk = record === undefined ? undefined : await this.#host.store.findDisk(record.disk)
    if (disk !== undefined) return disk.path
    throw new BandSoxError('image-not-found', `the image ${id} was removed just now`, { hint: 'try again' })
  }

  async export(image: string, target: string, options: { signal?: AbortSignal } = {}): Promise<void> {
    const { signal } = options
    const release = await this.hold(signal)
    try {
      const record = await this.#find(image)
      const references = await this.#referencesOf(record.id)
      await this.#fetchMissingLayers(record, references, signal)
      const names = references.map(({ reference }) => reference)
      await exportImage({
        store: this.#host.store,
        image: record,
        references: names,
        path: path.resolve(target),
        signal,
      })
    } finally {
      await release()
    }
  }

  async commit(
    source: string,
    reference: string,
    options: CommitOptions = {},
  ): Promise<{ image: ImageInfo; changed: boolean }> {
    const { onEvent, signal } = options
    const changes = checkedChanges(options)
    const name = registryName(await this.#parse(reference))
    return await this.#held(options, async () => {
      const { store, layers } = this.#host
      const { limits } = (await this.#readConfiguration()).images
      const layer = await layers.find(source)
      const base = await this.#baseOf(layer)
      if (base.layers.length >= limits.maxLayers) throw tooManyLayers(layer, limits)
      await this.#fetchMissingLayers(base, await this.#referencesOf(base.id), signal)
      return await withWorkDirectory(store.root, async (folder) => {
        const packed = await layer.pack(limits, {
          file: path.join(folder, 'layer.tar.gz'),
          onActivity: (what) => onEvent?.({ kind: 'preparing', what }),
          onStoodStill: (id, pauseMs) => onEvent?.({ kind: 'stood-still', sandbox: id, pauseMs }),
          onWarning: (message) => onEvent?.({ kind: 'warning', message }),
          signal,
        })
        const configuration = await store.blobs.readDocument(base.configuration.digest)
        const withLayer = commitSource({
          base,
          configuration,
          layer: packed,
          changes,
          createdAt: new Date().toISOString(),
        })
        // Also where a disk of the same content is there already: it is to be exported.
        await store.blobs.fetch(packed.descriptor, withLayer, { signal }).done
        const platform = parsePlatform(base.platform)
        const { image, changed } = await pullImage({
          ...{ store, source: withLayer, limits, reference: name, platform, origin: 'local', onEvent, signal },
        })
        return { record: image, changed }
      })
    })
  }

  /** @throws `image-not-found` when it was removed: a sandbox keeps its disk, which is not the layers. */
  async #baseOf({ title, image: { reference, digest } }: SandboxLayer): Promise<ImageRecord> {
    const record = await this.#host.store.readImage(digest)
    if (record !== undefined) return record
    throw new BandSoxError('image-not-found', `cannot commit ${title}: its image ${digest} was removed`, {
      hint: `fetch it again, as long as ${reference} means the same: bandsox image pull ${reference}`,
    })
  }

  async tag(image: string, reference: string): Promise<void> {
    const release = await this.hold()
    try {
      const record = await this.#find(image)
      const name = registryName(await this.#parse(reference))
      const root = record.manifest.digest
      await this.#host.store.writeReference({ version: 1, reference: name, image: record.id, root, origin: 'local' })
    } finally {
      await release()
    }
  }

  async get(image: string): Promise<ImageInfo> {
    const [info] = await this.#infos([await this.#find(image)])
    if (info === undefined) throw notHere(image)
    return info
  }

  async list(): Promise<ImageInfo[]> {
    await this.#host.store.open()
    await this.#warnOfDamaged()
    const infos = await this.#infos(await this.#host.store.images())
    return infos.sort((a, b) => b.lastUsedAt.localeCompare(a.lastUsedAt))
  }

  async remove(image: string, options: { force?: boolean } = {}): Promise<PruneResult> {
    const { store } = this.#host
    await this.#find(image) // its error goes before that of a lock
    return await this.#cleaning(async () => {
      const record = await this.#find(image)
      const references = (await this.#referencesOf(record.id)).map(({ reference }) => reference)
      const named = PLAIN_ID.test(image) ? undefined : await this.#canonical(image)
      if (named !== undefined && references.includes(named) && references.length > 1) {
        await store.removeReference(named)
        return { images: [], freedBytes: 0 }
      }
      const users = (await this.#host.sandboxesByImage()).get(record.id) ?? []
      if (users.length > 0 && options.force !== true) {
        const what = users.length === 1 ? 'a sandbox' : `${users.length} sandboxes`
        throw new BandSoxError('image-in-use', `${image} is used by ${what}: ${users.join(', ')}`)
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
      const damaged = await this.#warnOfDamaged()
      for (const record of await store.images()) {
        const references = await this.#referencesOf(record.id)
        // Among what cannot be read may be its name.
        const isNamed = references.length > 0 || damaged > 0
        const isWanted = isBuiltIn(references) || (isNamed && options.all !== true)
        const age = Date.now() - (await store.lastUsedAt(record.id)).getTime()
        if (!isWanted && !users.has(record.id) && age >= (options.olderThanMs ?? 0)) {
          result.freedBytes += await removeImage(store, record)
          result.images.push(record.id)
        } else if (options.layers === true && isOfRegistry(references)) {
          result.freedBytes += await removeLayers(store, record)
        }
      }
      result.freedBytes += await removeGarbage(store)
      return result
    })
  }

  /** Keeps to the configured size, unless somebody is fetching: then the next pull will. */
  async makeRoom(justPulled: string, onEvent?: PullOptions['onEvent']): Promise<void> {
    try {
      const { maxBytes } = (await this.#readConfiguration()).images
      if (maxBytes !== undefined) await this.#keepTo(maxBytes, justPulled, onEvent)
    } catch (error) {
      this.#host.warn(`cannot keep the images to their configured size: ${messageOf(error)}`) // the image itself is there
    }
  }

  async #keepTo(maxBytes: number, justPulled: string, onEvent: PullOptions['onEvent']): Promise<void> {
    const { store } = this.#host
    // What cannot be read may need what would be removed.
    if ((await isRoomy(store, maxBytes)) || (await store.damaged()).length > 0) return
    const release = await tryCleaning(this.#locks)
    if (release === undefined) return
    try {
      const users = await this.#host.sandboxesByImage()
      const isKept = (id: string) => id === justPulled || users.has(id)
      await makeRoom(store, { maxBytes, isKept, onEvicted: (image) => onEvent?.({ kind: 'evicted', ...image }) })
    } finally {
      await release()
    }
  }

  async #held(
    options: Pick<PullOptions, 'onEvent' | 'signal'>,
    obtain: () => Promise<{ record: ImageRecord; changed: boolean }>,
  ): Promise<{ image: ImageInfo; changed: boolean }> {
    const release = await this.hold(options.signal)
    let obtained: { record: ImageRecord; changed: boolean }
    let image: ImageInfo | undefined
    try {
      obtained = await obtain()
      ;[image] = await this.#infos([obtained.record])
    } finally {
      await release()
    }
    if (image === undefined)
      throw new BandSoxError('internal', `the image ${obtained.record.id} vanished while it was held`)
    if (obtained.changed) await this.makeRoom(image.id, options.onEvent)
    return { image, changed: obtained.changed }
  }

  /** Closes the source. */
  async #pullFrom(
    source: NamedImageSource,
    options: Omit<PullImageOptions, 'store' | 'source' | 'limits'>,
  ): Promise<{ record: ImageRecord; changed: boolean }> {
    try {
      const { limits } = (await this.#readConfiguration()).images
      const { reference, keepReference, platform, origin, onEvent, signal } = options
      const { image, changed } = await pullImage({
        ...{ store: this.#host.store, source, limits, reference, platform, origin, onEvent, signal },
        ...(keepReference !== undefined && { keepReference }),
      })
      return { record: image, changed }
    } finally {
      await source.close()
    }
  }

  /** What is there works too, so it is no failure of the caller's when it cannot be made anew. */
  async #withDiskOfToday(record: ImageRecord, { onEvent, signal }: PullOptions): Promise<ImageRecord> {
    if (!hasEarlierDisk(record)) return record
    const { limits } = (await this.#readConfiguration()).images
    try {
      return await renewDisk(record, { store: this.#host.store, limits, onEvent, signal })
    } catch (error) {
      signal?.throwIfAborted()
      this.#host.warn(`the disk of ${record.id} stays as an earlier version has made it: ${messageOf(error)}`)
      return record
    }
  }

  /** A name of an imported image means that image: a registry's of the same name is somebody else's. */
  async #checkFetchable(canonical: string): Promise<void> {
    const known = await this.#host.store.readReference(canonical)
    if (known?.origin !== 'local' || parseReference(canonical).kind !== 'registry') return
    throw new BandSoxError('artifact-damaged', `${canonical} was imported on this host, and its disk is damaged`, {
      hint: 'import it again: bandsox image import',
    })
  }

  async #fetchMissingLayers(
    record: ImageRecord,
    references: readonly ReferenceRecord[],
    signal?: AbortSignal,
  ): Promise<void> {
    const { blobs } = this.#host.store
    const missing: Descriptor[] = []
    for (const layer of record.layers) if ((await blobs.sizeOf(layer.digest)) === undefined) missing.push(layer)
    if (missing.length === 0) return
    let failure: unknown = new BandSoxError(
      'image-not-found',
      `layers of ${record.id} were pruned, and no registry has them`,
    )
    for (const { reference } of references.filter(({ origin }) => origin === 'registry')) {
      signal?.throwIfAborted()
      const context = await this.#sourceContext(parsePlatform(record.platform))
      const source = await openSource(await this.#parse(reference), context, { signal })
      try {
        for (const layer of missing) await blobs.fetch(layer, source, { signal }).done
        return
      } catch (error) {
        failure = error // another name may lead to another registry
      } finally {
        await source.close()
      }
    }
    throw failure
  }

  /** @returns How many records cannot be read. */
  async #warnOfDamaged(): Promise<number> {
    const damaged = await this.#host.store.damaged()
    for (const { error } of damaged) this.#host.warn(`${error.message}; it is left as it is`)
    return damaged.length
  }

  async #cleaning<T>(work: () => Promise<T>): Promise<T> {
    let hint = 'try again when that has ended'
    const release = await tryCleaning(this.#locks, (outOfSight) => {
      hint = outOfSight
    })
    if (release === undefined) {
      throw new BandSoxError('busy', 'cannot remove images while one is being fetched or removed', { hint })
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

  /** Also one whose disk is damaged. @throws `image-not-found`, `ambiguous-name`. */
  async #find(text: string): Promise<ImageRecord> {
    await this.#host.store.open()
    const record = await this.#recordOf(text, ID_PREFIX)
    if (record !== undefined) return record
    throw notHere(text)
  }

  /** By reference, else by id. */
  async #recordOf(text: string, idPattern: RegExp): Promise<ImageRecord | undefined> {
    const { store } = this.#host
    const canonical = PLAIN_ID.test(text) ? undefined : await this.#canonical(text)
    const reference = canonical === undefined ? undefined : await store.readReference(canonical)
    return reference === undefined ? await this.#byId(text, idPattern) : await store.readImage(reference.image)
  }

  async #byId(text: string, idPattern: RegExp): Promise<ImageRecord | undefined> {
    const [, prefix] = idPattern.exec(text) ?? []
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

  /** What the file itself calls its image: the first name that no image has yet, and those that one has. */
  async #namesOf(
    { names }: NamedImageSource,
    onEvent: PullOptions['onEvent'],
  ): Promise<{ free: string | undefined; taken: ReferenceRecord[] }> {
    const taken: ReferenceRecord[] = []
    for (const name of names) {
      // A layout may name its image by a tag alone, which means nothing outside of it.
      if (!name.includes('/') && !name.includes(':')) continue
      let reference: string
      try {
        reference = registryName(await this.#parse(name))
      } catch (error) {
        if (!(error instanceof BandSoxError && error.code === 'bad-request')) throw error
        onEvent?.({ kind: 'warning', message: `the file calls its image ${JSON.stringify(name)}, which is no name` })
        continue
      }
      const known = await this.#host.store.readReference(reference)
      if (known === undefined) return { free: reference, taken }
      taken.push(known)
    }
    return { free: undefined, taken }
  }

  async #referencesOf(id: string): Promise<ReferenceRecord[]> {
    return (await this.#host.store.references()).filter(({ image }) => image === id)
  }

  async #sourceContext(platform: Platform, onEvent?: PullOptions['onEvent']): Promise<SourceContext> {
    const { store, settings, debug } = this.#host
    const { credentialSources, proxy } = settings
    const registries = await this.#readConfiguration()
    const onActivity = (what: string) => onEvent?.({ kind: 'preparing', what })
    const { limits } = registries.images
    return { registries, credentialSources, proxy, workFolder: store.root, platform, limits, debug, onActivity }
  }

  #readConfiguration(): Promise<Configuration> {
    this.#configuration ??= readConfiguration(this.#host.settings.configFile).catch((error: unknown) => {
      this.#configuration = undefined // it may be mended before the next call
      throw error
    })
    return this.#configuration
  }

  async #infos(records: readonly ImageRecord[]): Promise<ImageInfo[]> {
    return await imageInfos(this.#host.store, records, await this.#host.sandboxesByImage())
  }
}

const isBuiltIn = (references: readonly ReferenceRecord[]): boolean =>
  references.some(({ reference }) => reference === BASE_REFERENCE)

const notHere = (text: string) =>
  new BandSoxError('image-not-found', `there is no image ${JSON.stringify(text)} on this host`, {
    hint: `see those that are there: bandsox image list; fetch it: bandsox image pull ${text}`,
  })

/** A guest has the host's processor. */
function checkRunnable(platform: Platform): void {
  if (isPlatform(platform, { ...hostPlatform(), ...(platform.variant !== undefined && { variant: platform.variant }) }))
    return
  throw new BandSoxError(
    'platform-not-found',
    `this host runs ${platformText(hostPlatform())}, and cannot run ${platformText(platform)}`,
  )
}

const tooManyLayers = ({ title }: SandboxLayer, { maxLayers }: ImageLimits) =>
  new BandSoxError(
    'image-too-large',
    `cannot commit ${title}: its image has ${maxLayers} layers, and cannot get one more (images.limits.maxLayers)`,
  )

function registryName(reference: SourceReference): string {
  if (reference.kind === 'registry') return formatReference(reference)
  throw new BandSoxError(
    'bad-request',
    `${formatReference(reference)} cannot name an image: a name is like owner/name:tag`,
  )
}
