/**
 * One SQLite database that many processes use at once: opened, brought to our version, and written to in short transactions.
 *
 * SQLite lets one process write at a time. Who finds another one at it tries again after a moment, without holding up this
 * process's event loop, and gives up after a bounded time. A transaction is a function that runs to its end at once: it cannot
 * wait for anything while it holds the lock.
 */
import { randomBytes } from 'node:crypto'
import { chmod, link, open, rm, writeFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import { type Connection, connect, failureOf } from './driver.js'
import { keepReserve, spendReserve } from './reserve.js'
import { APPLICATION_ID, migrations } from './schema.js'

/** A transaction takes less than a ms; many processes at once may still keep one from its turn for a while. */
const PATIENCE_MS = 15_000
const FIRST_PAUSE_MS = 1
const MAX_PAUSE_MS = 40

export type Tables = Pick<Connection, 'change' | 'row' | 'rows'>

export class Database {
  readonly #connection: Connection
  readonly #file: string
  readonly #steps: readonly string[]

  private constructor(connection: Connection, file: string, steps: readonly string[]) {
    this.#connection = connection
    this.#file = file
    this.#steps = steps
  }

  /**
   * Opens the database, and makes it where there is none. One of an earlier version is brought to ours, after a copy was made
   * beside it (`<file>.backup-v<N>`).
   *
   * @param steps From each version of the tables to the next.
   * @throws `storage-newer`; `storage-unusable` for what is not a database of ours, or cannot be written; `storage-busy`.
   */
  static async open(file: string, steps: readonly string[] = migrations): Promise<Database> {
    await createPrivately(file)
    const connection = attempt(file, () => connect(file))
    const database = new Database(connection, file, steps)
    try {
      await database.#patiently(() => {
        // WAL: readers never wait for a writer. NORMAL: a loss of power may take the last moments, and never breaks the file;
        // what it takes is found out by comparing with what is there, as every VM has died with it.
        connection.run('PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL')
      })
      await database.#migrate()
      await keepReserve(file)
    } catch (error) {
      connection.close()
      throw error
    }
    return database
  }

  /** Reads, in one consistent view. */
  async read<T>(work: (tables: Tables) => T): Promise<T> {
    return await this.#transaction('BEGIN', work)
  }

  /**
   * Runs `work` as one transaction: all of it holds afterwards, or nothing.
   *
   * @param work Must not wait. It may run again when another process was quicker.
   * @throws What `work` throws; `storage-busy`.
   */
  async write<T>(work: (tables: Tables) => T): Promise<T> {
    return await this.#transaction('BEGIN IMMEDIATE', work)
  }

  /**
   * As {@link write}, and on the disk when it returns: a loss of power takes neither it nor what was written before.
   */
  async writeDurably<T>(work: (tables: Tables) => T): Promise<T> {
    this.#connection.run('PRAGMA synchronous = FULL')
    try {
      return await this.write(work)
    } finally {
      this.#connection.run('PRAGMA synchronous = NORMAL')
    }
  }

  async #transaction<T>(begin: 'BEGIN' | 'BEGIN IMMEDIATE', work: (tables: Tables) => T): Promise<T> {
    return await this.#patiently(() => {
      this.#connection.run(begin)
      try {
        const result = work(this.#connection)
        this.#connection.run('COMMIT')
        return result
      } catch (error) {
        this.#rollBack()
        throw error
      }
    })
  }

  close(): void {
    this.#connection.close()
  }

  #rollBack(): void {
    try {
      this.#connection.run('ROLLBACK')
    } catch (error) {
      // SQLite has rolled back by itself already, as it does when the disk is full.
      if (failureOf(error) !== 'other') throw error
    }
  }

  async #migrate(): Promise<void> {
    const version = await this.read((tables) => this.#version(tables))
    if (version === this.#steps.length) return
    if (version > 0) await this.#backUp(version)
    await this.write((tables) => {
      // Another process may have been quicker.
      for (const step of this.#steps.slice(this.#version(tables))) this.#connection.run(step)
      this.#connection.run(`PRAGMA application_id = ${APPLICATION_ID}; PRAGMA user_version = ${this.#steps.length}`)
    })
  }

  /** @throws `storage-newer`, `storage-unusable`. */
  #version(tables: Tables): number {
    const application = Number(tables.row('PRAGMA application_id')?.['application_id'])
    const version = Number(tables.row('PRAGMA user_version')?.['user_version'])
    const isEmpty = tables.row('SELECT 1 FROM sqlite_schema LIMIT 1') === undefined
    if (application !== APPLICATION_ID && !isEmpty)
      throw new BandSoxError('storage-unusable', `${this.#file} is a database of another program`, {
        hint: 'use another folder: --storage FOLDER',
      })
    if (version > this.#steps.length)
      throw new BandSoxError(
        'storage-newer',
        `${this.#file} has version ${version} of its tables; this BandSox knows up to ${this.#steps.length}`,
      )
    return version
  }

  /** Another process may be quicker with backup and step: what is kept under the name is of that version, and is kept for ever. */
  async #backUp(version: number): Promise<void> {
    const backup = `${this.#file}.backup-v${version}`
    const unfinished = `${backup}.${randomBytes(6).toString('hex')}`
    try {
      await this.#patiently(() => this.#connection.change('VACUUM INTO $file', { file: unfinished }))
      await chmod(unfinished, 0o600)
      if (versionOf(unfinished) !== version) return
      const file = await open(unfinished, 'r')
      await file.sync().finally(() => file.close())
      await link(unfinished, backup)
    } catch (error) {
      if (!isSystemError(error, 'EEXIST')) throw error
    } finally {
      await rm(unfinished, { force: true })
    }
  }

  async #patiently<T>(work: () => T): Promise<T> {
    const deadline = performance.now() + PATIENCE_MS
    for (let pauseMs = FIRST_PAUSE_MS; ; pauseMs = Math.min(pauseMs * 2, MAX_PAUSE_MS)) {
      try {
        return attempt(this.#file, work)
      } catch (error) {
        if (!(error instanceof BandSoxError)) throw error
        if (error.code === 'no-space' && (await spendReserve(this.#file))) continue
        if (error.code !== 'storage-busy' || performance.now() > deadline) throw error
      }
      // At random, or those that collided would collide again.
      await delay(pauseMs * (0.5 + Math.random()))
    }
  }
}

function versionOf(file: string): number {
  const connection = connect(file, { readOnly: true })
  try {
    return Number(connection.row('PRAGMA user_version')?.['user_version'])
  } finally {
    connection.close()
  }
}

/** With the rights of its folder, which a backup or a copy of the file has not any more. */
async function createPrivately(file: string): Promise<void> {
  try {
    await writeFile(file, '', { flag: 'wx', mode: 0o600 })
  } catch (error) {
    // EROFS and EACCES: SQLite says it in its own way.
    if (!['EEXIST', 'EROFS', 'EACCES'].some((code) => isSystemError(error, code))) throw error
  }
}

/** Says of the driver's errors what they mean to a user. */
function attempt<T>(file: string, work: () => T): T {
  try {
    return work()
  } catch (error) {
    const sentence = (text: string) => `cannot use ${file}: ${text} (${messageOf(error)})`
    switch (failureOf(error)) {
      case 'busy':
        throw new BandSoxError('storage-busy', sentence(`other processes kept it locked for ${PATIENCE_MS} ms`), {
          cause: error,
        })
      case 'full':
        throw new BandSoxError('no-space', sentence('no space is left on its disk'), {
          cause: error,
          hint: 'free some: bandsox system df, bandsox system prune',
        })
      case 'read-only':
      case 'cannot-open':
        throw new BandSoxError('storage-unusable', sentence('it cannot be written'), {
          cause: error,
          hint: 'let it belong to you, or use another folder: --storage FOLDER',
        })
      case 'corrupt':
        throw new BandSoxError('storage-unusable', sentence('it is damaged'), {
          cause: error,
          hint: 'put a backup of it in its place',
        })
      case 'constraint':
      case 'other':
        throw error
    }
  }
}
