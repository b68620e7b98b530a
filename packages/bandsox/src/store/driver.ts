/**
 * The SQLite driver, behind the few calls that the store makes: another driver changes this file only. The one used has the
 * interface of Node's own `node:sqlite`, which Node 20 lacks, and brings its binaries in its package.
 */
import { DatabaseSync, type StatementSyncInstance } from '@photostructure/sqlite'

export type SqlValue = string | number | null
export type SqlRow = Record<string, unknown>

export interface Connection {
  /** Runs statements that return nothing and take nothing. */
  run(sql: string): void
  /** @returns How many rows were changed. */
  change(sql: string, values?: Record<string, SqlValue>): number
  row(sql: string, values?: Record<string, SqlValue>): SqlRow | undefined
  rows(sql: string, values?: Record<string, SqlValue>): SqlRow[]
  close(): void
}

/** Primary result codes: https://www.sqlite.org/rescode.html */
const SQLITE_BUSY = 5
const SQLITE_READONLY = 8
const SQLITE_IOERR = 10
const SQLITE_CORRUPT = 11
const SQLITE_FULL = 13
const SQLITE_CANTOPEN = 14
const SQLITE_CONSTRAINT = 19
const SQLITE_NOTADB = 26

/** Extended codes of SQLITE_IOERR that a full disk has: WRITE, FSYNC, TRUNCATE, SHMOPEN, SHMSIZE, SHMMAP. */
const NO_ROOM = new Set([3, 4, 6, 18, 19, 21].map((detail) => SQLITE_IOERR | (detail << 8)))

/** Prepared once for each text: a process asks the same few questions over and over. */
export function connect(file: string, options: { readOnly?: boolean } = {}): Connection {
  // 0: whoever finds the database locked waits in `database.ts`, where the event loop goes on meanwhile.
  const database = new DatabaseSync(file, { timeout: 0, readOnly: options.readOnly === true })
  const prepared = remembered((sql) => database.prepare(sql))
  // The driver makes a list of a row in half the time of an object: with thousands of them, that counts.
  const preparedForMany = remembered((sql) => {
    const statement = database.prepare(sql)
    statement.setReturnArrays(true)
    return statement
  })
  return {
    run: (sql) => database.exec(sql),
    change: (sql, values = {}) => Number(prepared(sql).run(values).changes),
    row: (sql, values = {}) => prepared(sql).get(values) as SqlRow | undefined,
    rows: (sql, values = {}) => {
      const statement = preparedForMany(sql)
      const lists = statement.all(values) as unknown as unknown[][]
      return asObjects(
        // Asked after each run: another process may have changed the tables.
        statement.columns().map(({ name }) => name),
        lists,
      )
    },
    /** The file stays open until the statements are collected with this: the driver cannot finalize them. */
    close: () => database.close(),
  }
}

function remembered(prepare: (sql: string) => StatementSyncInstance): (sql: string) => StatementSyncInstance {
  const statements = new Map<string, StatementSyncInstance>()
  return (sql) => {
    const known = statements.get(sql)
    if (known !== undefined) return known
    const statement = prepare(sql)
    statements.set(sql, statement)
    return statement
  }
}

function asObjects(names: readonly string[], lists: readonly (readonly unknown[])[]): SqlRow[] {
  return lists.map((list) => {
    const row: SqlRow = {}
    for (let index = 0; index < names.length; index++) row[names[index] as string] = list[index]
    return row
  })
}

export type SqlFailure = 'busy' | 'read-only' | 'corrupt' | 'full' | 'constraint' | 'cannot-open' | 'other'

/** What an error of the driver means; `other` also for one that is not the driver's. */
export function failureOf(error: unknown): SqlFailure {
  const code = error instanceof Error && 'errcode' in error && typeof error.errcode === 'number' ? error.errcode : 0
  switch (code & 0xff) {
    case SQLITE_BUSY:
      return 'busy'
    case SQLITE_READONLY:
      return 'read-only'
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return 'corrupt'
    case SQLITE_FULL:
      return 'full'
    case SQLITE_IOERR:
      return NO_ROOM.has(code) ? 'full' : 'other'
    case SQLITE_CANTOPEN:
      return 'cannot-open'
    case SQLITE_CONSTRAINT:
      return 'constraint'
    default:
      return 'other'
  }
}
