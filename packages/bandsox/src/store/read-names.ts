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

/** The newest first. */
export async function readNames(storage: string): Promise<z.infer<typeof nameRow>[]> {
  const file = path.join(storage, DATABASE_FILE)
  try {
    await access(file)
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return []
    throw error
  }
  const connection = connect(file, { readOnly: true })
  try {
    const rows = connection.rows(
      `SELECT id, name, state, image ->> '$.reference' AS image FROM sandboxes ORDER BY created_at DESC LIMIT ${MAX_NAMES}`,
    )
    return rows.map((row) => nameRow.parse(row))
  } finally {
    connection.close()
  }
}
