/** Connects to a Unix socket of a VM's directory, however long its path is. */
import { closeSync, fstatSync, openSync } from 'node:fs'
import { constants, open } from 'node:fs/promises'
import { createConnection, type Socket } from 'node:net'
import path from 'node:path'

/** open(2): a descriptor that only names a file. Node has no constant for it. */
const O_PATH = 0o10000000
/** sun_path holds 108 bytes with the final NUL (unix(7)); Node 20 cuts a longer path short without an error. */
export const MAX_SOCKET_PATH_BYTES = 107

/**
 * Opens a connection; the socket has no listeners left on it when it is returned.
 *
 * @param socketPath Absolute host path, of any length: one that is too long for the kernel is reached through
 *   `/proc/self/fd`, from its folder.
 * @throws The system error (`ENOENT`, `ECONNREFUSED`, …), or `signal.reason`.
 */
export async function connectUnixSocket(socketPath: string, signal?: AbortSignal): Promise<Socket> {
  signal?.throwIfAborted()
  if (Buffer.byteLength(socketPath) <= MAX_SOCKET_PATH_BYTES) return await connect(socketPath, signal)
  const folder = await open(path.dirname(socketPath), constants.O_RDONLY | constants.O_DIRECTORY)
  try {
    return await connect(`/proc/self/fd/${folder.fd}/${path.basename(socketPath)}`, signal)
  } finally {
    await folder.close()
  }
}

/**
 * As {@link connectUnixSocket}, to a socket in a folder where a VMM may write, which its guest may have taken over: a link to somebody
 * else's socket is not followed, since we may open what the VMM may not. The folder itself must not be the VMM's to replace.
 *
 * @throws `ENOTSOCK` for what is no socket, and as above.
 */
export async function connectForeignSocket(socketPath: string, signal?: AbortSignal): Promise<Socket> {
  signal?.throwIfAborted()
  const named = openSync(socketPath, O_PATH | constants.O_NOFOLLOW) // it only names, and so waits for nobody
  try {
    if (!fstatSync(named).isSocket())
      throw Object.assign(new Error(`ENOTSOCK: ${socketPath} is no socket`), { code: 'ENOTSOCK' })
    // What the descriptor names, whatever has become of the path since.
    return await connect(`/proc/self/fd/${named}`, signal)
  } finally {
    closeSync(named)
  }
}

function connect(socketPath: string, signal: AbortSignal | undefined): Promise<Socket> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason)
    const socket = createConnection({ path: socketPath })
    const settle = () => {
      signal?.removeEventListener('abort', abort)
      socket.removeAllListeners('connect').removeAllListeners('error')
    }
    const abort = () => {
      settle()
      socket.destroy()
      reject(signal?.reason)
    }
    signal?.addEventListener('abort', abort, { once: true })
    socket.once('connect', () => {
      settle()
      resolve(socket)
    })
    socket.once('error', (error) => {
      settle()
      socket.destroy()
      reject(error)
    })
  })
}
