/** A Unix socket in front of another one, which a test cuts: at a number of bytes, at once, or so that nothing gets through. */
import { once } from 'node:events'
import { createConnection, createServer, type Socket } from 'node:net'
import path from 'node:path'
import { type TestScope, temporaryFolder } from './temporary-folder.js'

export interface CuttingSocket {
  readonly path: string
  /** Connections that were let through so far. */
  readonly connections: number
  /** Connections that are open now. */
  readonly open: number
  /** Bytes that have passed, both ways. */
  readonly bytes: number
  /** Cuts every connection, the present and the coming ones, each after so many bytes both ways from now on. */
  cutAfter(bytes: number | undefined): void
  /** Cuts the connections that are open now. @returns How many there were. */
  cutNow(): number
  /** From now on connections are closed without a word. */
  refuse(isRefusing: boolean): void
  /** From now on nothing passes, and nobody is told. */
  stall(isStalled: boolean): void
}

export async function cuttingSocket(t: TestScope, target: string, at?: string): Promise<CuttingSocket> {
  const socketPath = at ?? path.join(await temporaryFolder(t), 'cut.sock')
  const open = new Set<Socket>()
  const state = { connections: 0, bytes: 0, left: undefined as number | undefined, isRefusing: false, isStalled: false }
  const cutAll = () => {
    for (const socket of open) socket.destroy()
  }
  const server = createServer((host) => {
    host.on('error', () => undefined)
    if (state.isRefusing) {
      host.destroy()
      return
    }
    state.connections++
    const guest = createConnection(target)
    let left = state.left
    const pass = (from: Socket, to: Socket) => {
      open.add(from)
      from.on('error', () => undefined)
      from.on('close', () => {
        open.delete(from)
        to.resume() // it may wait for this one to take more
        if (left === undefined || left > 0) to.end()
        else to.destroy()
      })
      from.on('data', (data: Buffer) => {
        if (state.isStalled || to.destroyed) return
        if (left !== undefined) {
          const piece = data.subarray(0, left)
          left -= piece.length
          state.bytes += piece.length
          to.write(piece)
          if (left > 0) return
          from.destroy()
          to.destroySoon()
          return
        }
        state.bytes += data.length
        if (to.write(data)) return
        from.pause()
        to.once('drain', () => from.resume())
      })
    }
    pass(host, guest)
    pass(guest, host)
  })
  server.listen(socketPath)
  await once(server, 'listening')
  t.after(async () => {
    cutAll()
    server.close()
    await once(server, 'close')
  })
  return {
    path: socketPath,
    get connections() {
      return state.connections
    },
    get open() {
      return open.size / 2
    },
    get bytes() {
      return state.bytes
    },
    cutAfter(bytes) {
      state.left = bytes
      if (bytes !== undefined) cutAll()
    },
    cutNow() {
      const count = open.size / 2
      cutAll()
      return count
    },
    refuse(isRefusing) {
      state.isRefusing = isRefusing
      if (isRefusing) cutAll()
    },
    stall(isStalled) {
      state.isStalled = isStalled
    },
  }
}
