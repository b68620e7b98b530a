/** The snapshots of this host. */
import { BandSoxError, type RestoreOptions, type SnapshotCheck, type SnapshotInfo, type Snapshots } from '@bandsox/sdk'
import type { SnapshotRecord } from '../../store/snapshot-store.js'
import { checkedName } from '../description.js'
import type { Host } from '../host.js'
import { LocalSandbox } from '../local-sandbox.js'
import { exportSnapshot, importSnapshot } from './archive.js'
import { checkFiles } from './files.js'
import { checkDigestFile, type Manifest } from './manifest.js'
import { restoreSnapshot } from './restore.js'
import { snapshotInfo } from './snapshot-info.js'
import { basesOf, checkKeptWhole, manifestOf, mergeSnapshot } from './whole.js'

export class LocalSnapshots implements Snapshots {
  readonly #host: Host

  constructor(host: Host) {
    this.#host = host
  }

  async list({ templates = false }: { templates?: boolean } = {}): Promise<SnapshotInfo[]> {
    const records = await this.#host.store.snapshots.list(templates ? ['snapshot', 'template'] : ['snapshot'])
    const infos: SnapshotInfo[] = []
    for (const record of records) {
      try {
        infos.push(await this.#info(record))
      } catch (error) {
        // One whose folder is damaged must not keep anybody from the others; who looks at it alone is told.
        if (!(error instanceof BandSoxError && error.code === 'snapshot-damaged')) throw error
        if ((await this.#host.store.snapshots.read(record.id)) !== undefined) this.#host.warn(error.message) // else it was removed
      }
    }
    return infos
  }

  /** Of all that are whole, by their rows. */
  async ids({ purpose = 'snapshot' }: { purpose?: 'snapshot' | 'template' } = {}): Promise<string[]> {
    return (await this.#host.store.snapshots.list([purpose])).map(({ id }) => id)
  }

  async get(idOrName: string): Promise<SnapshotInfo> {
    return await this.#info(await this.#host.store.snapshots.find(idOrName))
  }

  async restore(idOrName: string, options: RestoreOptions = {}): Promise<LocalSandbox> {
    const snapshot = await this.#host.store.snapshots.find(idOrName)
    const { record, agent } = await restoreSnapshot(this.#host, snapshot, options)
    return new LocalSandbox(this.#host, record.id, { agent, record })
  }

  async rename(idOrName: string, name: string): Promise<void> {
    const { id } = await this.#host.store.snapshots.find(idOrName)
    await this.#host.store.snapshots.describe(id, { name: checkedName(name) })
    this.#host.info(`renamed ${id} to ${name}`)
  }

  async delete(idOrName: string, { force = false }: { force?: boolean } = {}): Promise<string> {
    const { id } = await this.#host.store.snapshots.find(idOrName)
    await this.#host.store.snapshots.remove(id, (sandboxes) => {
      if (sandboxes.length > 0 && !force)
        throw new BandSoxError(
          'snapshot-in-use',
          `cannot delete snapshot ${id}: its memory is mapped by running sandboxes: ${sandboxes.join(', ')}`,
          { hint: 'stop them first, or use --force: they keep what they need of it until they end' },
        )
    })
    this.#host.info(`deleted ${id}`)
    return id
  }

  /**
   * Also one that sandboxes were started from: they keep what they need.
   *
   * @throws `not-found`, also for what is no template.
   */
  async removeTemplate(id: string): Promise<string> {
    const { store } = this.#host
    const found = await store.snapshots.find(id).catch((error: unknown) => {
      if (error instanceof BandSoxError && error.code === 'not-found') return undefined
      throw error
    })
    if (found?.purpose !== 'template')
      throw new BandSoxError('not-found', `there is no template ${JSON.stringify(id)}`, {
        hint:
          found === undefined
            ? 'see what there is: bandsox template list'
            : `it is a snapshot: bandsox snapshot delete ${found.id}`,
      })
    return await this.delete(found.id, { force: true })
  }

  async merge(idOrName: string, { signal }: { signal?: AbortSignal } = {}): Promise<SnapshotInfo> {
    const { id } = await this.#host.store.snapshots.find(idOrName)
    return await this.#info(await mergeSnapshot(this.#host, id, signal))
  }

  async verify(idOrName: string, { signal }: { signal?: AbortSignal } = {}): Promise<SnapshotCheck> {
    const record = await this.#host.store.snapshots.find(idOrName)
    const manifest = await manifestOf(this.#host, record)
    await this.#readAll(record, manifest, signal)
    // What it is restored from: made whole already, or to be made of these.
    if (manifest.kind === 'diff' && (await checkKeptWhole(this.#host, record.id, signal)) === undefined)
      for (const base of await basesOf(this.#host, record)) await this.#readAll(base.record, base.manifest, signal)
    return { id: record.id, files: manifest.files.map(({ name, sizeBytes }) => ({ name, sizeBytes })) }
  }

  async #readAll(record: SnapshotRecord, { files }: Manifest, signal: AbortSignal | undefined): Promise<void> {
    const { id, manifestDigest = '' } = record
    const folder = this.#host.store.snapshots.folderOf(id)
    await checkDigestFile(folder, id, manifestDigest)
    await checkFiles(this.#host, { folder, title: `snapshot ${id}` }, files, {}, { all: true, signal })
  }

  async export(idOrName: string, file: string, options: { signal?: AbortSignal } = {}): Promise<{ bytes: number }> {
    return await exportSnapshot(this.#host, await this.#host.store.snapshots.find(idOrName), file, options)
  }

  async import(file: string, options: { name?: string; signal?: AbortSignal } = {}): Promise<SnapshotInfo> {
    return await this.#info(await importSnapshot(this.#host, file, options))
  }

  async #info(record: SnapshotRecord): Promise<SnapshotInfo> {
    return await snapshotInfo(this.#host, record, await manifestOf(this.#host, record))
  }
}
