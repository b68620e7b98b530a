/** The `CONNECT` handshake that every link of ours speaks: Firecracker's vsock, the vsock daemon's, the shim's. */

import type { Socket } from 'node:net'
import { BandSoxError, type LinkKind, messageOf } from '@bandsox/sdk'
import { connectUnixSocket } from '../process/unix-socket.js'
import type { Link } from './link.js'

/** `OK ` and a u32 and a newline need 14 bytes; the rest is tolerance. */
const MAX_REPLY_BYTES = 32
const NEWLINE = 0x0a

/**
 * A link through a Unix socket.
 *
 * @param socketPath Host path of the socket.
 * @param port Guest port (u32) that the agent listens on.
 * @see Firecracker docs/vsock.md, "Host-Initiated Connections"
 */
export function socketLink(kind: LinkKind, socketPath: string, port: number): Link {
  return {
    kind,
    async open(signal) {
      const socket = await reach(socketPath, kind, signal)
      try {
        // In one piece: Firecracker reads the line with a single call and closes on half of it.
        socket.write(`CONNECT ${port}\n`)
        await readReply(socket, signal)
        return socket
      } catch (error) {
        socket.destroy()
        throw error
      }
    },
  }
}

async function reach(socketPath: string, kind: LinkKind, signal: AbortSignal | undefined): Promise<Socket> {
  try {
    return await connectUnixSocket(socketPath, signal)
  } catch (error) {
    if (signal?.aborted) throw error
    throw new BandSoxError('link-refused', `cannot reach the ${kind} socket ${socketPath}: ${messageOf(error)}`, {
      cause: error,
    })
  }
}

/** Takes the reply line off the stream, and leaves what follows it unread. A closed stream instead of a line is a refusal. */
function readReply(socket: Socket, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    if (signal?.aborted) return reject(signal.reason) // between the connection and here: no event would tell us
    let reply = Buffer.alloc(0)
    const settle = (act: () => void) => {
      socket.off('readable', read).off('end', refuse).off('error', fail).off('close', refuse)
      signal?.removeEventListener('abort', abort)
      act()
    }
    const refuse = () =>
      settle(() => reject(new BandSoxError('link-refused', 'the guest does not listen (yet): connection closed')))
    const fail = (error: Error) =>
      settle(() => reject(new BandSoxError('link-refused', `the link broke: ${error.message}`, { cause: error })))
    const abort = () => settle(() => reject(signal?.reason))
    const read = () => {
      for (let chunk = socket.read() as Buffer | null; chunk !== null; chunk = socket.read() as Buffer | null) {
        reply = Buffer.concat([reply, chunk])
        const end = reply.indexOf(NEWLINE)
        if (end === -1 && reply.length <= MAX_REPLY_BYTES) continue
        const line = reply.subarray(0, end === -1 ? MAX_REPLY_BYTES : end).toString('latin1')
        if (end === -1 || !/^OK \d{1,10}$/.test(line)) {
          return settle(() =>
            reject(new BandSoxError('link-refused', `the link answered ${JSON.stringify(line)} instead of OK`)),
          )
        }
        const rest = reply.subarray(end + 1)
        return settle(() => {
          if (rest.length > 0) socket.unshift(rest)
          resolve()
        })
      }
    }
    signal?.addEventListener('abort', abort, { once: true })
    socket.on('readable', read).once('end', refuse).once('error', fail).once('close', refuse)
  })
}
