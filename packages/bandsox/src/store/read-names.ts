/** Reads which sandboxes there are, and nothing else: quick, makes no file, and sets nothing right. */
import { access } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'
import { z } from 'zod'
import { connect } from './driver.js'
import { DATABASE_FILE } from './storage-folder.js'

/** As many as anybody would choose from. */
const MAX_NAMES = 1_000

const nameRow = z.object({ id: z.string(), name: z.string().nullable(), state: z.string(), image: z.string() })

const snapshotRow = z.object({ id: z.string(), name: z.string().nullable(), sandbox: z.string() })

/** The newest first. */
export async function readNames(storage: string): Promise<z.infer<typeof nameRow>[]> {
  return await readRows(
    storage,
    nameRow,
    `SELECT id, name, state, image ->> '$.reference' AS image FROM sandboxes ORDER BY created_at DESC LIMIT ${MAX_NAMES}`,
  )
}

/** Those that are whole, the newest first. */
export async function readSnapshotNames(storage: string): Promise<z.infer<typeof snapshotRow>[]> {
  return await readRows(
    storage,
    snapshotRow,
    `SELECT id, name, sandbox FROM snapshots WHERE state = 'ready' AND purpose = 'snapshot' ORDER BY created_at DESC LIMIT ${MAX_NAMES}`,
  )
}

async function readRows<S extends z.ZodType>(storage: string, row: S, query: string): Promise<z.infer<S>[]> {
  const file = path.join(storage, DATABASE_FILE)
  try {
    await access(file)
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return []
    throw error
  }
  const connection = connect(file, { readOnly: true })
  try {
    return connection.rows(query).map((each) => row.parse(each))
  } finally {
    connection.close()
  }
}
