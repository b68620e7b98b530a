/** What lies in the guest's file system: `stat` and `list` of PROTOCOL.md section 2. */
import type { FileEntry } from '@bandsox/sdk'
import type { WireEntry } from '../wire/message.js'
import type { Agent } from './agent.js'
import { type GuestConnection, isLinkFailure } from './connection.js'

/** @throws `file-not-found`, `permission-denied`, and the failures of the link. */
export async function statFile(
  agent: Agent,
  path: string,
  options: { followLinks?: boolean; signal?: AbortSignal } = {},
): Promise<FileEntry> {
  const { signal, followLinks = true } = options
  const asked = {
    async run(connection: GuestConnection) {
      connection.send({ type: 'stat', path, followLinks })
      const info = await connection.receiveMessage('info', { signal, about: `look at ${path} in the guest` })
      return fileEntry(info.file)
    },
    canGoOn: () => true, // it may as well be asked again
    progress: () => 0,
  }
  return await agent.useUntilDone(asked, { signal })
}

/**
 * Entries as the guest sends them: never more in memory than one message of it, however large the folder. When the connection breaks before
 * the first one, the folder is listed again; later it would be another listing, and so it fails.
 */
export async function* listFolder(
  agent: Agent,
  path: string,
  options: { signal?: AbortSignal } = {},
): AsyncGenerator<FileEntry> {
  const { signal } = options
  let connection = await agent.acquire({ signal })
  const { bootId } = connection.hello
  for (let stalls = 1; ; stalls++) {
    let count = 0
    try {
      for await (const file of entriesOver(agent, connection, path, signal)) {
        count++
        yield file
      }
      return
    } catch (error) {
      if (!isLinkFailure(error) || count > 0) throw error
      connection = await agent.reconnect(error, { signal, bootId, stalls })
    }
  }
}

async function* entriesOver(
  agent: Agent,
  connection: GuestConnection,
  path: string,
  signal: AbortSignal | undefined,
): AsyncGenerator<FileEntry> {
  const about = `list ${path} in the guest`
  let inStep = false
  try {
    connection.send({ type: 'list', path })
    let count = 0
    for (;;) {
      const frame = await connection.receive({ signal })
      if (frame.kind === 'message' && frame.message.type === 'listed') {
        if (frame.message.count !== count)
          throw connection.violation(`it listed ${count} entries and says ${frame.message.count}`)
        inStep = true
        return
      }
      if (frame.kind !== 'message' || frame.message.type !== 'entries') throw connection.unexpected(frame, about)
      count += frame.message.files.length
      for (const file of frame.message.files) yield fileEntry(file)
    }
  } catch (error) {
    agent.lost(connection, error)
    throw error
  } finally {
    if (inStep) agent.release(connection)
    else agent.discard(connection)
  }
}

function fileEntry({ size, mtimeMs, rawName, target, ...same }: WireEntry): FileEntry {
  return {
    ...same,
    sizeBytes: size,
    modifiedAt: isoTime(mtimeMs),
    ...(rawName !== undefined && { rawName }),
    ...(target !== undefined && { target }),
  }
}

/** ECMAScript's time ends at ±8.64e15 ms; a guest's file may claim any. */
function isoTime(milliseconds: number): string {
  return new Date(Math.max(-8.64e15, Math.min(8.64e15, milliseconds))).toISOString()
}
