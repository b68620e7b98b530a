/** The snapshots of one storage folder: a row each, and a folder each. The row comes first and goes last. */
import { mkdir, open, readdir, rename, rm } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, type Metadata } from '@bandsox/sdk'
import { isAlive } from '../process/identity.js'
import { lockHolder } from '../process/lock-file.js'
import { anything, type Check, type Checked, json, mapOf, nullable, number, object, oneOf, text } from './check.js'
import type { Database, Tables } from './database.js'
import type { SqlRow } from './driver.js'
import { newId } from './new-id.js'
import { self } from './operation.js'
import { holderCheck, type OperationHolder } from './record.js'

export const SNAPSHOTS_FOLDER = 'snapshots'
/** Of one that is being made: it gets its own name when it is whole. */
const UNFINISHED_PREFIX = '.new-'
/** Of a state that is being made whole, of a snapshot that is there. */
const WHOLE_PREFIX = '.whole-'
const WHOLE_LOCK = 'whole.lock'
const SNAPSHOT_ID = /^snp_[a-z2-7]{10}$/
const REMOVAL = { recursive: true, force: true, maxRetries: 12, retryDelay: 50 } as const

const seal = object({ inode: text, sizeBytes: number, modifiedNs: text })
/** What a file was like when it was last found to be whole, by its name. */
export type Seals = Record<string, Checked<typeof seal>>

const checks = {
  text,
  textOrNull: nullable(text),
  purpose: oneOf('snapshot', 'template', 'fork'),
  state: oneOf('creating', 'ready', 'deleting'),
  metadata: json(mapOf(anything) as Check<Metadata>),
  seals: nullable(json(mapOf(seal) as Check<Seals>)),
  holder: nullable(json(holderCheck)),
}

export type SnapshotPurpose = Checked<typeof checks.purpose>

export interface SnapshotRecord {
  id: string
  name: string | undefined
  purpose: SnapshotPurpose
  templateKey: string | undefined
  /** Id of the sandbox that it was taken of. */
  sandbox: string
  /** Id of the snapshot that it holds the changes since. */
  base: string | undefined
  metadata: Metadata
  createdAt: string
  state: Checked<typeof checks.state>
  manifestDigest: string | undefined
  seals: Seals
  /** When something was last started from it. */
  usedAt: string | undefined
  holder: OperationHolder | undefined
}

export type NewSnapshot = Pick<SnapshotRecord, 'name' | 'purpose' | 'templateKey' | 'sandbox' | 'base' | 'metadata'>

/** The columns are written by us alone. @throws `storage-unusable`. */
function recordOf(row: SqlRow): SnapshotRecord {
  const column = <T>(name: string, check: Check<T>): T => {
    try {
      return check(row[name])
    } catch (error) {
      throw new BandSoxError(
        'storage-unusable',
        `the record of snapshot ${String(row['id'])} is damaged at ${name}: ${String(error)}`,
        { cause: error, hint: 'put a backup of bandsox.db in its place' },
      )
    }
  }
  return {
    id: column('id', checks.text),
    name: column('name', checks.textOrNull) ?? undefined,
    purpose: column('purpose', checks.purpose),
    templateKey: column('template_key', checks.textOrNull) ?? undefined,
    sandbox: column('sandbox', checks.text),
    base: column('base', checks.textOrNull) ?? undefined,
    metadata: column('metadata', checks.metadata),
    createdAt: column('created_at', checks.text),
    state: column('state', checks.state),
    manifestDigest: column('manifest_digest', checks.textOrNull) ?? undefined,
    seals: column('seals', checks.seals) ?? {},
    usedAt: column('used_at', checks.textOrNull) ?? undefined,
    holder: column('holder', checks.holder) ?? undefined,
  }
}

/** A snapshot that this process makes; its folder is there, empty, under another name. */
export interface UnfinishedSnapshot {
  readonly id: string
  /** Absolute; mode 0700. */
  readonly folder: string
  /** Gives it its name, and lists it. The files in the folder are on the disk already. */
  publish(done: { manifestDigest: string; seals: Seals }): Promise<SnapshotRecord>
  /** Removes all of it. Harmless when it was published. */
  discard(): Promise<void>
}

export class SnapshotStore {
  readonly #folder: string
  readonly #database: Database

  constructor(root: string, database: Database) {
    this.#folder = path.join(root, SNAPSHOTS_FOLDER)
    this.#database = database
  }

  folderOf(id: string): string {
    return path.join(this.#folder, id)
  }

  /**
   * Enters a snapshot that this process makes.
   *
   * @returns undefined when there is a template for the key, or somebody makes one.
   * @throws `wrong-state` when the one that it is to build on is not there.
   */
  async begin(snapshot: NewSnapshot): Promise<UnfinishedSnapshot | undefined> {
    const id = newId('snp')
    const holder = JSON.stringify(await self())
    const isEntered = await this.#database.write((tables) => {
      if (snapshot.templateKey !== undefined && hasTemplate(tables, snapshot.templateKey)) return false
      if (snapshot.base !== undefined && readRecord(tables, snapshot.base)?.state !== 'ready')
        throw withoutBase(snapshot.sandbox, snapshot.base)
      tables.change(
        `INSERT INTO snapshots (id, name, purpose, template_key, sandbox, base, metadata, created_at, state, holder)
         VALUES ($id, $name, $purpose, $key, $sandbox, $base, $metadata, $now, 'creating', $holder)`,
        {
          ...{ id, name: snapshot.name ?? null, purpose: snapshot.purpose, key: snapshot.templateKey ?? null },
          ...{ sandbox: snapshot.sandbox, base: snapshot.base ?? null, metadata: JSON.stringify(snapshot.metadata) },
          ...{ now: new Date().toISOString(), holder },
        },
      )
      return true
    })
    if (!isEntered) return undefined
    const folder = path.join(this.#folder, `${UNFINISHED_PREFIX}${id}`)
    let isPublished = false
    const discard = async () => {
      if (isPublished) return
      await this.#removeFolders(id)
      await this.#database.write((tables) => tables.change('DELETE FROM snapshots WHERE id = $id', { id }))
    }
    try {
      await mkdir(folder, { recursive: true, mode: 0o700 })
    } catch (error) {
      await discard()
      throw error
    }
    return {
      id,
      folder,
      discard,
      publish: async ({ manifestDigest, seals }) => {
        await syncFolder(folder) // its files are
        await rename(folder, this.folderOf(id))
        await syncFolder(this.#folder) // before a row says that it is there
        const record = await this.#database.writeDurably((tables) => {
          tables.change(
            `UPDATE snapshots SET state = 'ready', holder = NULL, manifest_digest = $manifestDigest, seals = $seals
             WHERE id = $id`,
            { id, manifestDigest, seals: JSON.stringify(seals) },
          )
          return readRecord(tables, id)
        })
        if (record === undefined) throw notFound(id)
        isPublished = true
        return record
      },
    }
  }

  /** Of those that are whole: users' own, or with `templates` those too; the oldest first. */
  async list(purposes: readonly SnapshotPurpose[] = ['snapshot']): Promise<SnapshotRecord[]> {
    const rows = await this.#database.read((tables) =>
      tables.rows("SELECT * FROM snapshots WHERE state = 'ready' ORDER BY created_at, id"),
    )
    return rows.map(recordOf).filter(({ purpose }) => purposes.includes(purpose))
  }

  /** Also those that are being made, or removed. */
  async all(): Promise<SnapshotRecord[]> {
    return (await this.#database.read((tables) => tables.rows('SELECT * FROM snapshots'))).map(recordOf)
  }

  /** One that is whole. */
  async read(id: string): Promise<SnapshotRecord | undefined> {
    const record = await this.#database.read((tables) => readRecord(tables, id))
    return record?.state === 'ready' ? record : undefined
  }

  /** By id, name, or a unique prefix of an id; whole ones. @throws `not-found`, `ambiguous-name`. */
  async find(idOrName: string): Promise<SnapshotRecord> {
    const all = await this.list(['snapshot', 'template'])
    const prefix = /^(?:snp_)?[a-z2-7]{1,10}$/.test(idOrName) ? `snp_${idOrName.replace(/^snp_/, '')}` : undefined
    const ways: ((record: SnapshotRecord) => boolean)[] = [
      ({ id }) => id === idOrName,
      ({ name }) => name === idOrName,
      ({ id }) => prefix !== undefined && id.startsWith(prefix),
    ]
    for (const way of ways) {
      const [match, ...others] = all.filter(way)
      if (match === undefined) continue
      if (others.length === 0) return match
      throw new BandSoxError(
        'ambiguous-name',
        `${JSON.stringify(idOrName)} means ${others.length + 1} snapshots: ${[match, ...others].map(({ id }) => id).join(', ')}`,
        { hint: 'use an id: bandsox snapshot list' },
      )
    }
    throw notFound(idOrName)
  }

  /** The template for a key: `ready`, or somebody makes it. */
  async template(key: string): Promise<SnapshotRecord | undefined> {
    return await this.#database.read((tables) => {
      const row = tables.row('SELECT * FROM snapshots WHERE template_key = $key', { key })
      return row === undefined ? undefined : recordOf(row)
    })
  }

  /** Why the last try to make a template for a key failed, if it did since `since`. */
  async templateFailure(key: string, since: Date): Promise<string | undefined> {
    return await this.#database.read((tables) => {
      const row = tables.row('SELECT reason FROM template_failures WHERE key = $key AND at > $since', {
        ...{ key, since: since.toISOString() },
      })
      return row === undefined ? undefined : checks.text(row['reason'])
    })
  }

  async templateFailed(key: string, reason: string): Promise<void> {
    await this.#database.write((tables) => {
      tables.change(
        `INSERT INTO template_failures VALUES ($key, $at, $reason)
         ON CONFLICT (key) DO UPDATE SET at = $at, reason = $reason`,
        { key, at: new Date().toISOString(), reason },
      )
    })
  }

  /** @throws `not-found`. */
  async describe(id: string, changes: { name?: string; metadata?: Metadata }): Promise<SnapshotRecord> {
    return await this.#database.write((tables) => {
      const before = readRecord(tables, id)
      if (before?.state !== 'ready') throw notFound(id)
      const after = { ...before, ...changes }
      tables.change('UPDATE snapshots SET name = $name, metadata = $metadata WHERE id = $id', {
        ...{ id, name: after.name ?? null, metadata: JSON.stringify(after.metadata) },
      })
      return after
    })
  }

  /** Something was started from it, and its files are as `seals` says. */
  async used(id: string, seals?: Seals): Promise<void> {
    await this.#database.write((tables) => {
      tables.change('UPDATE snapshots SET used_at = $now WHERE id = $id', { id, now: new Date().toISOString() })
      if (seals !== undefined)
        tables.change('UPDATE snapshots SET seals = $seals WHERE id = $id', { id, seals: JSON.stringify(seals) })
    })
  }

  /**
   * A snapshot builds on no other any more.
   *
   * @param now Its manifest from now on, in place of `was`.
   * @returns undefined when it is not as it was: somebody else has done it, or removes it.
   */
  async becomeWhole(
    id: string,
    was: string | undefined,
    now: { manifestDigest: string; seals: Seals },
  ): Promise<SnapshotRecord | undefined> {
    return await this.#database.writeDurably((tables) => {
      const changed = tables.change(
        `UPDATE snapshots SET base = NULL, manifest_digest = $manifestDigest, seals = $seals
         WHERE id = $id AND state = 'ready' AND manifest_digest IS $was`,
        { id, was: was ?? null, manifestDigest: now.manifestDigest, seals: JSON.stringify(now.seals) },
      )
      return changed === 1 ? readRecord(tables, id) : undefined
    })
  }

  /** Where the state of one is made whole, before it gets its place; by who has {@link lockOf}. */
  unfinishedWholeOf(id: string): string {
    return path.join(this.#folder, `${WHOLE_PREFIX}${id}`)
  }

  lockOf(id: string): string {
    return path.join(this.folderOf(id), WHOLE_LOCK)
  }

  /**
   * Removes a snapshot. Who has been started from it keeps hard links to what it needs.
   *
   * @param refuse Asked inside the transaction, of the ids of sandboxes that run on it: throws to keep it.
   * @throws `not-found`; `snapshot-in-use` while others build on it; what `refuse` throws.
   */
  async remove(id: string, refuse: (sandboxes: string[]) => void = () => undefined): Promise<void> {
    const holder = JSON.stringify(await self())
    await this.#database.write((tables) => {
      if (readRecord(tables, id) === undefined) throw notFound(id)
      const above = idsOf(tables, 'SELECT id FROM snapshots WHERE base = $id', id)
      if (above.length > 0) throw isBase(id, above)
      refuse(idsOf(tables, 'SELECT id FROM sandboxes WHERE restored_from = $id AND cid IS NOT NULL', id))
      tables.change("UPDATE snapshots SET state = 'deleting', holder = $holder, base = NULL WHERE id = $id", {
        id,
        holder,
      })
    })
    await this.#finishRemoval(id)
  }

  /** What dead processes have left: rows of those that they were making or removing, and folders without a row. */
  async remains(): Promise<{ subject: string; problem: string; remove: () => Promise<void> }[]> {
    const names = await readdir(this.#folder).catch((error: unknown) => {
      if (isSystemError(error, 'ENOENT')) return []
      throw error
    })
    // Read after the folders: a row is there before its folder, and after it.
    const records = await this.all()
    const known = new Set(records.flatMap(({ id }) => [id, `${UNFINISHED_PREFIX}${id}`]))
    const found = []
    for (const record of records) {
      if (record.holder === undefined || (await isAlive(record.holder))) continue
      found.push({
        subject: `snapshot ${record.id}`,
        problem: `process ${record.holder.pid} has died at ${record.state} it`,
        remove: () => this.#finishRemoval(record.id),
      })
    }
    for (const name of names.filter((each) => each.startsWith(WHOLE_PREFIX))) {
      const id = name.slice(WHOLE_PREFIX.length)
      const maker = known.has(id) ? await lockHolder(this.lockOf(id)) : undefined
      if (maker !== undefined && (await isAlive(maker))) continue
      const entry = path.join(this.#folder, name)
      const problem = 'the process that made the state of a snapshot whole has died'
      found.push({ subject: entry, problem, remove: () => rm(entry, REMOVAL) })
    }
    for (const name of names.filter((each) => !known.has(each))) {
      if (!SNAPSHOT_ID.test(name.replace(UNFINISHED_PREFIX, ''))) continue // not ours
      const entry = path.join(this.#folder, name)
      found.push({ subject: entry, problem: 'it belongs to no snapshot', remove: () => rm(entry, REMOVAL) })
    }
    return found
  }

  async #finishRemoval(id: string): Promise<void> {
    await this.#removeFolders(id)
    await this.#database.write((tables) => {
      tables.change('UPDATE snapshots SET base = NULL WHERE base = $id', { id })
      tables.change('DELETE FROM snapshots WHERE id = $id', { id })
    })
  }

  async #removeFolders(id: string): Promise<void> {
    for (const name of [id, `${UNFINISHED_PREFIX}${id}`, `${WHOLE_PREFIX}${id}`])
      await rm(path.join(this.#folder, name), REMOVAL)
  }
}

async function syncFolder(folder: string): Promise<void> {
  await using handle = await open(folder, 'r')
  await handle.sync()
}

const hasTemplate = (tables: Tables, key: string): boolean =>
  tables.row('SELECT 1 FROM snapshots WHERE template_key = $key', { key }) !== undefined

function readRecord(tables: Tables, id: string): SnapshotRecord | undefined {
  const row = tables.row('SELECT * FROM snapshots WHERE id = $id', { id })
  return row === undefined ? undefined : recordOf(row)
}

const idsOf = (tables: Tables, query: string, id: string): string[] =>
  tables.rows(query, { id }).map((row) => String(row['id']))

const isBase = (id: string, above: string[]): BandSoxError =>
  new BandSoxError('snapshot-in-use', `cannot delete snapshot ${id}: ${above.join(', ')} hold what changed since`, {
    hint: `make those independent of it (bandsox snapshot merge ${above[0]}), or delete them first`,
  })

const withoutBase = (sandbox: string, base: string): BandSoxError =>
  new BandSoxError('wrong-state', `cannot save what has changed in sandbox ${sandbox}: snapshot ${base} was deleted`, {
    hint: 'take a whole one first, without --diff',
  })

const notFound = (idOrName: string) =>
  new BandSoxError('not-found', `there is no snapshot ${JSON.stringify(idOrName)}`, {
    hint: 'see what there is: bandsox snapshot list',
  })
