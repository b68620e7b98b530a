/** The sandboxes of one storage folder: a row each, and a directory each. The row comes first and goes last. */
import { chmod, mkdir, readdir, realpath, rename, rm } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, isSystemError, type SandboxEvent, type SandboxState } from '@bandsox/sdk'
import { z } from 'zod'
import { isOutOfSight } from '../process/identity.js'
import { Database, type Tables } from './database.js'
import { readFileRecords } from './file-records.js'
import { newId } from './new-id.js'
import { type AllocatorState, allocatorState, beginAfter, nextCid, nextPort, resetNumbers } from './numbers.js'
import {
  abandoned,
  busyError,
  interruptedBy,
  isInProgress,
  isSettling,
  newOperation,
  replaceOperation,
  settlingAfter,
} from './operation.js'
import { PoolStore } from './pool-store.js'
import { columnsOf, type MachineRecord, type RecordedOperation, recordOf, type SandboxRecord } from './record.js'
import { SnapshotStore } from './snapshot-store.js'
import { DATABASE_FILE, folderIdentity, openStorageFolder, VMS_FOLDER } from './storage-folder.js'
import { hasIdentity, refuseCopy } from './storage-identity.js'

/** Tried again for some seconds: a shim whose starter was just killed may still be ending its VM, and write there meanwhile. */
const REMOVAL = { recursive: true, force: true, maxRetries: 12, retryDelay: 50 } as const
const REMOVED_PREFIX = '.removed-'
/** To set something right takes some ms, but for an interrupted stop, or a guest that does not answer. */
const SETTLING_MS = 20_000
const SETTLING_POLL_MS = 20
const SANDBOX_ID = /^sbx_[a-z2-7]{10}$/

export const newSandboxId = (): string => newId('sbx')

/** Asked inside the transaction that gives a sandbox its numbers: throws when the host has no room for it. */
export type Admission = (running: readonly Pick<SandboxRecord, 'id' | 'memoryMib'>[], wanted: SandboxRecord) => void

/** An operation that this process has begun on a sandbox. */
export interface Claim {
  /** As it was when the operation began; later changes are made through the store. */
  readonly record: SandboxRecord
  /** Gives the operation another name: from a look to what it turns out to be. */
  become(name: string): Promise<void>
  /** Ends the operation. Harmless when it has ended, or the sandbox is gone. */
  release(): Promise<void>
  /** Leaves the operation as one that its process died at: it failed half-way, and whoever comes next is to set that right. */
  abandon(): Promise<void>
}

/** What a change of state takes along. `releaseNumbers` in the same transaction, so that no number is held by what has stopped. */
export interface Transition {
  state: SandboxState
  releaseNumbers?: boolean
  machine?: MachineRecord
  timings?: Record<string, number>
  /** On the disk when it returns: it is told to somebody who relies on it. */
  isDurable?: boolean
}

export class SandboxStore {
  readonly root: string
  readonly snapshots: SnapshotStore
  readonly pools: PoolStore
  readonly #vms: string
  readonly #database: Database
  readonly #debug: (message: string) => void
  /** Tokens of the operations of this process, by the sandbox. */
  readonly #held = new Map<string, string>()

  private constructor(root: string, database: Database, debug: (message: string) => void) {
    this.root = root
    this.#vms = path.join(root, VMS_FOLDER)
    this.#database = database
    this.#debug = debug
    this.snapshots = new SnapshotStore(root, database)
    this.pools = new PoolStore(database)
  }

  /**
   * Opens the storage, and makes it where there is none.
   *
   * @param debug Told of each number that is allocated and released.
   * @throws `storage-unusable`, `storage-newer`, `storage-busy`, `permission-denied`, `bad-request`.
   */
  static async open(root: string, debug: (message: string) => void = () => undefined): Promise<SandboxStore> {
    await openStorageFolder(root)
    const database = await Database.open(path.join(root, DATABASE_FILE))
    try {
      if (!(await hasIdentity(database))) await enterFolder(root, database)
      await refuseCopy(root, database)
      return new SandboxStore(await realpath(root), database, debug)
    } catch (error) {
      database.close()
      throw error
    }
  }

  close(): void {
    this.#database.close()
  }

  directoryOf(id: string): string {
    return `${this.#vms}/${id}`
  }

  /**
   * Enters a sandbox that this process makes. Nobody else works on it until the claim is released; when this process dies first,
   * the next one removes it.
   *
   * @param options.unique Refuses a name that another sandbox has.
   * @throws `name-taken`.
   */
  async insert(
    record: Omit<SandboxRecord, 'operation'>,
    options: { unique?: boolean; operation?: string } = {},
  ): Promise<Claim> {
    const operation = await newOperation(options.operation ?? 'create')
    const entered = { ...record, operation }
    await this.#database.write((tables) => {
      if (options.unique === true) refuseTakenName(tables, record.id, record.name)
      insert(tables, entered)
    })
    return this.#claim(entered, operation)
  }

  /**
   * Takes one out of a pool: it is this process's from then on, under an operation that leaves nothing of it, should we die.
   *
   * @param as What it is from now on.
   * @returns The claim, and what it was; undefined when none waits there.
   * @throws `name-taken`.
   */
  async takeFromPool(
    pool: string,
    as: Pick<SandboxRecord, 'name' | 'env' | 'labels' | 'metadata' | 'limits' | 'createdAt'>,
    options: { unique?: boolean } = {},
  ): Promise<(Claim & { before: SandboxRecord }) | undefined> {
    const operation = await newOperation('create')
    const taken = await this.#database.write((tables) => {
      const row = tables.row(
        `SELECT * FROM sandboxes WHERE pool = $pool AND state = 'paused' AND reason IS NULL AND operation IS NULL
         ORDER BY created_at LIMIT 1`,
        { pool },
      )
      if (row === undefined) return undefined
      const before = recordOf(row)
      if (options.unique === true) refuseTakenName(tables, before.id, as.name)
      const after: SandboxRecord = { ...before, ...as, pool: undefined, operation }
      const columns = ['name', 'env', 'labels', 'metadata', 'limits', 'created_at', 'pool']
      const changed = [...columns, 'operation', 'operation_since', 'operation_token', 'holder']
      tables.change(
        `UPDATE sandboxes SET ${changed.map((name) => `${name} = $${name}`).join(', ')} WHERE id = $id`,
        pick(columnsOf(after), ['id', ...changed]),
      )
      return { before, after }
    })
    return taken && { ...this.#claim(taken.after, operation), before: taken.before }
  }

  /** Puts a sandbox into a pool; under its claim. */
  async putIntoPool(id: string, pool: string): Promise<void> {
    await this.#database.write((tables) => {
      this.#ownRecord(tables, id)
      tables.change('UPDATE sandboxes SET pool = $pool WHERE id = $id', { id, pool })
    })
  }

  /** Mode 0711: the VM's own user reaches its disk by name, and sees nothing else. */
  async makeDirectory(id: string): Promise<void> {
    await mkdir(this.directoryOf(id))
    await chmod(this.directoryOf(id), 0o711) // whatever this process's umask is
  }

  /** @returns undefined when there is no such sandbox. */
  async read(id: string): Promise<SandboxRecord | undefined> {
    return await this.#database.read((tables) => readRecord(tables, id))
  }

  /** Oldest first. */
  async list(): Promise<SandboxRecord[]> {
    const rows = await this.#database.read((tables) => tables.rows('SELECT * FROM sandboxes ORDER BY created_at, id'))
    return rows.map(recordOf)
  }

  /** Of all sandboxes, in no order: without reading any. */
  async ids(): Promise<string[]> {
    return (await this.#database.read((tables) => tables.rows('SELECT id FROM sandboxes'))).map(({ id }) => String(id))
  }

  /** By id, by the id that it had in the earlier project, by name, or by a unique prefix of an id. @throws `not-found`, `ambiguous-name`. */
  async find(idOrName: string): Promise<SandboxRecord> {
    const rows = await this.#database.read((tables) => {
      const exact = tables.rows('SELECT * FROM sandboxes WHERE id = $text OR imported_from = $text', { text: idOrName })
      if (exact.length > 0) return exact
      const named = tables.rows('SELECT * FROM sandboxes WHERE name = $text ORDER BY created_at', { text: idOrName })
      if (named.length > 0) return named
      const prefix = idOrName.replace(/^sbx_/, '')
      if (!/^[a-z2-7]{1,10}$/.test(prefix)) return []
      return tables.rows('SELECT * FROM sandboxes WHERE id GLOB $pattern ORDER BY id', { pattern: `sbx_${prefix}*` })
    })
    const [match] = rows
    if (match === undefined) throw new BandSoxError('not-found', `there is no sandbox ${JSON.stringify(idOrName)}`)
    if (rows.length > 1) {
      const matches = rows.map(recordOf)
      const listed = matches.map(({ id, state }) => `${id} (${state.kind})`).join(', ')
      throw new BandSoxError('ambiguous-name', `${JSON.stringify(idOrName)} means ${rows.length} sandboxes: ${listed}`)
    }
    return recordOf(match)
  }

  /** The sandboxes of each image, by the image's digest. */
  async idsByImage(): Promise<Map<string, string[]>> {
    const row = z.object({ image_digest: z.string(), id: z.string() })
    const rows = await this.#database.read((tables) =>
      tables.rows('SELECT image_digest, id FROM sandboxes ORDER BY id'),
    )
    const found = new Map<string, string[]>()
    for (const { image_digest: digest, id } of rows.map((each) => row.parse(each)))
      found.set(digest, [...(found.get(digest) ?? []), id])
    return found
  }

  /** Ids of running sandboxes that were restored from a snapshot. */
  async runningOf(snapshot: string): Promise<string[]> {
    const rows = await this.#database.read((tables) =>
      tables.rows('SELECT id FROM sandboxes WHERE restored_from = $snapshot AND cid IS NOT NULL ORDER BY id', {
        snapshot,
      }),
    )
    return rows.map(({ id }) => String(id))
  }

  /**
   * Begins an operation.
   *
   * @param options.instead Names of operations that are taken away from their process, alive or not: it finds out when it next writes.
   * @returns undefined when a process has died at one: what it left is to be set right first, under `takeOver`.
   * @throws `busy` while another one is in progress; `not-found`.
   */
  async claim(id: string, name: string, options: { instead?: readonly string[] } = {}): Promise<Claim | undefined> {
    const deadline = performance.now() + SETTLING_MS
    for (;;) {
      const record = await this.read(id)
      if (record === undefined) throw notFound(id)
      const { operation } = record
      if (operation !== undefined && options.instead?.includes(operation.name) !== true) {
        if (!(await isInProgress(operation))) return undefined
        // Somebody who only lists has found something to set right: that is no reason to refuse anybody.
        if (!isSettling(operation.name) || performance.now() > deadline) throw await busyError(id, operation)
        await delay(SETTLING_POLL_MS)
        continue
      }
      const claim = await this.#replace(record, name)
      if (claim !== undefined) return claim
    }
  }

  /**
   * Takes over from a process that died at an operation, or begins to look after a sandbox that nobody works on. Should this process
   * die as well, the next one finds out what had been interrupted first; a removal stays one.
   *
   * @returns The claim, and what had been interrupted; undefined while another process works on it, or when it is gone.
   */
  async takeOver(id: string): Promise<(Claim & { interrupted: string | undefined }) | undefined> {
    for (;;) {
      const record = await this.read(id)
      if (record === undefined) return undefined
      const { operation } = record
      if (operation !== undefined && (await isInProgress(operation))) return undefined
      const interrupted = interruptedBy(operation?.name)
      const claim = await this.#replace(record, interrupted === 'delete' ? 'delete' : settlingAfter(interrupted))
      if (claim !== undefined) return { ...claim, interrupted }
    }
  }

  /** Ends operations of this process on several sandboxes in one step: should it die, all of them are somebody's, or none. */
  async releaseTogether(ids: readonly string[]): Promise<void> {
    await this.#database.write((tables) => {
      for (const id of ids) {
        const { operation } = this.#ownRecord(tables, id)
        replaceOperation(tables, id, operation, undefined)
      }
    })
    for (const id of ids) this.#held.delete(id)
  }

  /** @returns undefined when another process was quicker. */
  async #replace(before: SandboxRecord, name: string): Promise<Claim | undefined> {
    const operation = await newOperation(name)
    const record = await this.#database.write((tables) =>
      replaceOperation(tables, before.id, before.operation, operation) ? readRecord(tables, before.id) : undefined,
    )
    return record === undefined ? undefined : this.#claim(record, operation)
  }

  /**
   * Ends the operation of a process that cannot be seen from here, and is known to be gone.
   *
   * @throws `wrong-state` for one that can be seen: whether that is gone need not be believed.
   */
  async forgetOperation(id: string): Promise<void> {
    const record = await this.read(id)
    if (record === undefined) throw notFound(id)
    const { operation } = record
    if (operation === undefined || !(await isOutOfSight(operation.holder)))
      throw new BandSoxError(
        'wrong-state',
        `sandbox ${id} has no operation of another container that could be forgotten`,
      )
    await this.#database.write((tables) => replaceOperation(tables, id, operation, abandoned(operation)))
  }

  /**
   * Gives a sandbox its numbers; under its claim.
   *
   * @param options.above A CID that others on this host have: the next one above it is taken.
   * @throws `host-resource`; what `admit` throws.
   */
  async takeNumbers(
    id: string,
    options: { above?: number; admit?: Admission } = {},
  ): Promise<{ cid: number; port: number }> {
    const taken = await this.#database.write((tables) => {
      const record = this.#ownRecord(tables, id)
      if (record.cid === null) options.admit?.(runningShapes(tables), record)
      // Its own is free again for others, but not for itself: it was refused.
      const cid = nextCid(tables, options.above)
      const port = record.port ?? nextPort(tables)
      tables.change('UPDATE sandboxes SET cid = $cid, port = $port WHERE id = $id', { id, cid, port })
      return { cid, port, before: record }
    })
    const { cid, port, before } = taken
    if (before.cid !== null) this.#debug(`Released CID: ${before.cid}`)
    this.#debug(`Allocated CID: ${cid}`)
    if (before.port === null) this.#debug(`Allocated port: ${port}`)
    return { cid, port }
  }

  /** Changes the state; under the sandbox's claim. */
  async transition(
    id: string,
    { state, releaseNumbers = false, machine, timings, isDurable = false }: Transition,
  ): Promise<SandboxRecord> {
    const write = (tables: Tables) => {
      const before = this.#ownRecord(tables, id)
      const after: SandboxRecord = {
        ...before,
        state,
        ...(releaseNumbers && { cid: null, port: null }),
        ...(machine !== undefined && { machine }),
        ...(timings !== undefined && { timings }),
      }
      tables.change(
        `UPDATE sandboxes SET state = $state, since = $since, reason = $reason, cid = $cid, port = $port, machine = $machine,
         timings = $timings WHERE id = $id`,
        pick(columnsOf(after), ['id', 'state', 'since', 'reason', 'cid', 'port', 'machine', 'timings']),
      )
      return { before, after }
    }
    const { before, after } = await (isDurable ? this.#database.writeDurably(write) : this.#database.write(write))
    this.#tellReleased(before, after)
    return after
  }

  /** Gives back the numbers of a start that failed; under the sandbox's claim. */
  async releaseNumbers(id: string): Promise<void> {
    const before = await this.#database.write((tables) => {
      if (readRecord(tables, id) === undefined) return undefined
      const record = this.#ownRecord(tables, id)
      tables.change('UPDATE sandboxes SET cid = NULL, port = NULL WHERE id = $id', { id })
      return record
    })
    if (before !== undefined) this.#tellReleased(before, { ...before, cid: null, port: null })
  }

  /**
   * Changes what is told of a sandbox, or what its next machine is like.
   *
   * @param change Of the record as it is now.
   * @throws `name-taken`; `not-found`; what `change` throws.
   */
  async describe(
    id: string,
    change: (
      record: SandboxRecord,
    ) => Partial<
      Pick<SandboxRecord, 'name' | 'labels' | 'metadata' | 'limits' | 'vcpu' | 'memoryMib' | 'layers' | 'machine'>
    >,
    options: { unique?: boolean } = {},
  ): Promise<SandboxRecord> {
    return await this.#database.write((tables) => {
      const before = this.#ownRecord(tables, id)
      const after = { ...before, ...change(before) }
      if (options.unique === true) refuseTakenName(tables, id, after.name)
      tables.change(
        `UPDATE sandboxes SET name = $name, labels = $labels, metadata = $metadata, limits = $limits, vcpu = $vcpu,
         memory_mib = $memory_mib, layers = $layers, machine = $machine WHERE id = $id`,
        pick(columnsOf(after), [
          ...['id', 'name', 'labels', 'metadata', 'limits', 'vcpu', 'memory_mib', 'layers', 'machine'],
        ]),
      )
      return after
    })
  }

  /** Removes a sandbox: its directory first, which is not found under its id from the first moment, and its row last. */
  async remove(id: string): Promise<void> {
    await this.removeDirectory(id)
    const before = await this.#database.write((tables) => {
      if (readRecord(tables, id) === undefined) return undefined
      const record = this.#ownRecord(tables, id)
      tables.change('DELETE FROM sandboxes WHERE id = $id', { id })
      return record
    })
    if (before !== undefined) this.#tellReleased(before, { ...before, cid: null, port: null })
  }

  /** Also what a process that was killed had left of it. */
  async removeDirectory(id: string): Promise<void> {
    const removed = path.join(this.#vms, `${REMOVED_PREFIX}${id}`)
    try {
      await rename(this.directoryOf(id), removed)
    } catch (error) {
      if (isSystemError(error, 'ENOTEMPTY') || isSystemError(error, 'EEXIST')) {
        await rm(removed, REMOVAL)
        await rename(this.directoryOf(id), removed)
      } else if (!isSystemError(error, 'ENOENT')) throw error
    }
    await rm(removed, REMOVAL)
  }

  /**
   * Entries of the folder of VMs that no sandbox owns. A row is there before its folder, and after it: what has no row is nobody's.
   */
  async strangers(): Promise<{ name: string; path: string; id: string | undefined }[]> {
    const names = await readdir(this.#vms)
    const known = new Set((await this.ids()).flatMap((id) => [id, `${REMOVED_PREFIX}${id}`]))
    return names
      .filter((name) => !known.has(name))
      .map((name) => {
        const id = name.replace(REMOVED_PREFIX, '')
        return { name, path: path.join(this.#vms, name), id: SANDBOX_ID.test(id) ? id : undefined }
      })
  }

  async numbers(): Promise<AllocatorState> {
    return await this.#database.read(allocatorState)
  }

  /** @throws `wrong-state` while a sandbox holds any. */
  async resetNumbers(): Promise<void> {
    await this.#database.write(resetNumbers)
  }

  /** Goes on counting from the earlier project's numbers. */
  async beginNumbersAfter(numbers: { cid: number; port: number }): Promise<void> {
    await this.#database.write((tables) => beginAfter(tables, numbers))
  }

  /** Oldest first; at most 1000. */
  async events(after: number): Promise<SandboxEvent[]> {
    const rows = await this.#database.read((tables) =>
      tables.rows('SELECT * FROM events WHERE sequence > $after ORDER BY sequence LIMIT 1000', { after }),
    )
    return rows.map((row) => {
      const { name, reason, ...rest } = eventRow.parse(row)
      return { ...rest, name: name ?? undefined, ...(reason !== null && { reason }) }
    })
  }

  #claim(record: SandboxRecord, operation: RecordedOperation): Claim {
    let current = operation
    this.#held.set(record.id, operation.token)
    const replace = async (next: RecordedOperation | undefined) => {
      await this.#database.write((tables) => replaceOperation(tables, record.id, current, next))
    }
    const letGo = () => {
      if (this.#held.get(record.id) === current.token) this.#held.delete(record.id)
    }
    return {
      record,
      become: async (name) => {
        const next = { ...current, name }
        await replace(next)
        current = next
      },
      release: async () => {
        await replace(undefined)
        letGo()
      },
      abandon: async () => {
        await replace(abandoned(current))
        letGo()
      },
    }
  }

  /**
   * The row, when nobody else works on it: this process may have lost its claim meanwhile.
   *
   * @throws `busy`, `not-found`.
   */
  #ownRecord(tables: Tables, id: string): SandboxRecord {
    const record = readRecord(tables, id)
    if (record === undefined) throw notFound(id)
    if (record.operation?.token === this.#held.get(id)) return record
    const { name = 'nothing' } = record.operation ?? {}
    throw new BandSoxError('busy', `sandbox ${id} was taken over by another command: ${name} is in progress`)
  }

  #tellReleased(before: SandboxRecord, after: SandboxRecord): void {
    if (before.cid !== null && after.cid === null) this.#debug(`Released CID: ${before.cid}`)
    if (before.port !== null && after.port === null) this.#debug(`Released port: ${before.port}`)
  }
}

/**
 * Makes a new database that of this folder, with the sandboxes of a version that kept files.
 *
 * @throws `storage-unusable` where other sandboxes are: their database was lost, and without it they would be removed as nobody's.
 */
async function enterFolder(root: string, database: Database): Promise<void> {
  const vms = path.join(root, VMS_FOLDER)
  const records = await readFileRecords(vms)
  const recorded = new Set(records.map(({ id }) => id))
  const unknown = (await readdir(vms)).filter((name) => SANDBOX_ID.test(name) && !recorded.has(name))
  // Another process may have been quicker, and have made some meanwhile.
  if (unknown.length > 0 && !(await hasIdentity(database)))
    throw new BandSoxError(
      'storage-unusable',
      `the database of the storage ${root} is missing, and folders of sandboxes are there: ${unknown.slice(0, 5).join(', ')}`,
      { hint: `put a backup of ${DATABASE_FILE} in its place; to give those sandboxes up, remove ${vms}` },
    )
  const identity = await folderIdentity(root)
  await database.write((tables) => {
    if (tables.row('SELECT 1 FROM storage') !== undefined) return // another process was quicker
    tables.change('INSERT INTO storage VALUES (1, $path, $inode)', identity)
    for (const record of records) insert(tables, record)
  })
  await rm(path.join(root, 'leases'), { recursive: true, force: true }) // an earlier version's
}

const eventRow = z.object({
  sequence: z.number(),
  at: z.string(),
  sandbox: z.string(),
  name: z.string().nullable(),
  kind: z.string(),
  reason: z.string().nullable(),
})

const COLUMNS = [
  ...[
    'id',
    'name',
    'imported_from',
    'own_root',
    'layers',
    'restored_from',
    'pool',
    'image',
    'vcpu',
    'memory_mib',
    'disk_mib',
    'env',
    'limits',
    'labels',
    'metadata',
    'vsock',
  ],
  ...['machine', 'timings', 'created_at', 'state', 'since', 'reason', 'cid', 'port'],
  ...['operation', 'operation_since', 'operation_token', 'holder'],
]
const INSERT = `INSERT INTO sandboxes (${COLUMNS.join(', ')}) VALUES (${COLUMNS.map((name) => `$${name}`).join(', ')})`

const insert = (tables: Tables, record: SandboxRecord): void => void tables.change(INSERT, columnsOf(record))

function readRecord(tables: Tables, id: string): SandboxRecord | undefined {
  const row = tables.row('SELECT * FROM sandboxes WHERE id = $id', { id })
  return row === undefined ? undefined : recordOf(row)
}

function runningShapes(tables: Tables): Pick<SandboxRecord, 'id' | 'memoryMib'>[] {
  const row = z.object({ id: z.string(), memory_mib: z.number() })
  return tables
    .rows('SELECT id, memory_mib FROM sandboxes WHERE cid IS NOT NULL')
    .map((each) => row.parse(each))
    .map(({ id, memory_mib: memoryMib }) => ({ id, memoryMib }))
}

function refuseTakenName(tables: Tables, id: string, name: string | undefined): void {
  if (name === undefined) throw new BandSoxError('bad-request', 'unique needs a name')
  const row = tables.row('SELECT id FROM sandboxes WHERE name = $name AND id <> $id', { name, id })
  if (row !== undefined)
    throw new BandSoxError('name-taken', `the name ${name} is taken by sandbox ${String(row['id'])}`)
}

const notFound = (id: string) => new BandSoxError('not-found', `there is no sandbox ${id}: it was removed`)

const pick = <V>(columns: Record<string, V>, names: readonly string[]): Record<string, V> =>
  Object.fromEntries(Object.entries(columns).filter(([name]) => names.includes(name)))
