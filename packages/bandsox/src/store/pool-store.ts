/** Pools of sandboxes that wait to be taken: a row for each pool, and its sandboxes' own rows, which name it. */
import { BandSoxError } from '@bandsox/sdk'
import { isAlive } from '../process/identity.js'
import { type Check, type Checked, json, nullable, number, object, oneOf, text } from './check.js'
import type { Database, Tables } from './database.js'
import type { SqlRow } from './driver.js'
import { newId } from './new-id.js'
import { self } from './operation.js'
import { holderCheck, type OperationHolder } from './record.js'

const options = object({
  vcpu: number,
  memoryMib: number,
  diskMib: number,
  vsock: oneOf('auto', 'on', 'off'),
})

const checks = { text, textOrNull: nullable(text), number, options: json(options), holder: nullable(json(holderCheck)) }

export type PoolOptions = Checked<typeof options>

export interface PoolRecord {
  id: string
  /** Reference of the image. */
  image: string
  size: number
  options: PoolOptions
  maxAgeMs: number
  createdAt: string
  /** The process that fills it just now, should it live. */
  holder: OperationHolder | undefined
  failure: string | undefined
}

export interface PoolCounts {
  /** Sandboxes that can be taken, and those that are being made. */
  ready: number
  making: number
}

function recordOf(row: SqlRow): PoolRecord {
  const column = <T>(name: string, check: Check<T>): T => check(row[name])
  return {
    id: column('id', checks.text),
    image: column('image', checks.text),
    size: column('size', checks.number),
    options: column('options', checks.options),
    maxAgeMs: column('max_age_ms', checks.number),
    createdAt: column('created_at', checks.text),
    holder: column('holder', checks.holder) ?? undefined,
    failure: column('failure', checks.textOrNull) ?? undefined,
  }
}

export class PoolStore {
  readonly #database: Database

  constructor(database: Database) {
    this.#database = database
  }

  /** One for each image and shape: what is there of it is changed. */
  async set(pool: Pick<PoolRecord, 'image' | 'size' | 'options' | 'maxAgeMs'>): Promise<PoolRecord> {
    const { image, size, maxAgeMs } = pool
    return await this.#database.write((tables) => {
      const before = findPool(tables, image, pool.options)
      const id = before?.id ?? newId('pool')
      tables.change(
        `INSERT INTO pools (id, image, size, options, max_age_ms, created_at)
         VALUES ($id, $image, $size, $options, $maxAgeMs, $now)
         ON CONFLICT (id) DO UPDATE SET size = $size, max_age_ms = $maxAgeMs, failure = NULL`,
        { id, image, size, options: JSON.stringify(pool.options), maxAgeMs, now: new Date().toISOString() },
      )
      return requirePool(tables, id)
    })
  }

  /** In the order in which they were made. */
  async list(): Promise<PoolRecord[]> {
    const rows = await this.#database.read((tables) => tables.rows('SELECT * FROM pools ORDER BY created_at, id'))
    return rows.map(recordOf)
  }

  async read(id: string): Promise<PoolRecord | undefined> {
    return await this.#database.read((tables) => readPool(tables, id))
  }

  async find(image: string, wanted: PoolOptions): Promise<PoolRecord | undefined> {
    return await this.#database.read((tables) => findPool(tables, image, wanted))
  }

  /** What waits in it stays, and is nobody's: the caller removes it. */
  async remove(id: string): Promise<void> {
    await this.#database.write((tables) => tables.change('DELETE FROM pools WHERE id = $id', { id }))
  }

  async counts(id: string): Promise<PoolCounts> {
    return await this.#database.read((tables) => {
      const count = (condition: string) =>
        number(tables.row(`SELECT count(*) AS n FROM sandboxes WHERE pool = $id AND ${condition}`, { id })?.['n'])
      return { ready: count("state = 'paused' AND operation IS NULL"), making: count('operation IS NOT NULL') }
    })
  }

  /** Ids of the sandboxes in it, the oldest first. */
  async members(id: string): Promise<string[]> {
    const rows = await this.#database.read((tables) =>
      tables.rows('SELECT id FROM sandboxes WHERE pool = $id ORDER BY created_at, id', { id }),
    )
    return rows.map((row) => String(row['id']))
  }

  /**
   * Makes this process the one that fills it.
   *
   * @returns The release; undefined while another one is at it, or when there is no such pool.
   */
  async holdForFilling(id: string): Promise<(() => Promise<void>) | undefined> {
    const before = await this.read(id)
    if (before === undefined || (before.holder !== undefined && (await isAlive(before.holder)))) return undefined
    const [old, holder] = [before.holder && JSON.stringify(before.holder), JSON.stringify(await self())]
    const changed = await this.#database.write((tables) =>
      tables.change('UPDATE pools SET holder = $holder WHERE id = $id AND holder IS $old', {
        ...{ id, holder, old: old ?? null },
      }),
    )
    if (changed !== 1) return undefined
    return async () => {
      await this.#database.write((tables) =>
        tables.change('UPDATE pools SET holder = NULL WHERE id = $id AND holder = $holder', { id, holder }),
      )
    }
  }

  async failed(id: string, failure: string | undefined): Promise<void> {
    await this.#database.write((tables) =>
      tables.change('UPDATE pools SET failure = $failure WHERE id = $id', { id, failure: failure ?? null }),
    )
  }
}

function findPool(tables: Tables, image: string, wanted: PoolOptions): PoolRecord | undefined {
  const pools = tables.rows('SELECT * FROM pools WHERE image = $image', { image }).map(recordOf)
  return pools.find(({ options: had }) => JSON.stringify(had) === JSON.stringify(wanted))
}

function readPool(tables: Tables, id: string): PoolRecord | undefined {
  const row = tables.row('SELECT * FROM pools WHERE id = $id', { id })
  return row === undefined ? undefined : recordOf(row)
}

function requirePool(tables: Tables, id: string): PoolRecord {
  const pool = readPool(tables, id)
  if (pool === undefined) throw new BandSoxError('internal', `pool ${id} was not written`)
  return pool
}
