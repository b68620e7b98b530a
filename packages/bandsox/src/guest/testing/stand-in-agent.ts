/**
 * A small agent for tests, speaking the `CONNECT` handshake and the real protocol on a real Unix socket. A test scripts what it
 * says, so it can be as hostile as a guest may be.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type Server, type Socket } from 'node:net'
import path from 'node:path'
import type { Link } from '../../link/link.js'
import { socketLink } from '../../link/socket-link.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { type BulkKind, encodeHeader, FrameDecoder, type Received } from '../../wire/frame.js'
import type { ToGuest, ToHost } from '../../wire/message.js'
import { Agent } from '../agent.js'

export type FromHost = Received<ToGuest>
export type RequestOf<T extends ToGuest['type']> = Extract<ToGuest, { type: T }>

/** Plays the guest on one connection, from the byte behind `OK` on. */
export type Script = (host: HostPeer) => Promise<void>

/** The host closed while a script waited for it: what that means is the test's to judge. */
class HostGone extends Error {}

/** The host, as the stand-in sees it. */
export class HostPeer {
  readonly socket: Socket
  /** Which connection this is, from 1. */
  readonly number: number
  readonly #chunks: AsyncIterator<Buffer>
  readonly #decoder = new FrameDecoder('to-guest')
  #pending: Iterator<FromHost> = [][Symbol.iterator]()
  readonly #closed: Promise<void>

  constructor(socket: Socket, number: number) {
    this.socket = socket
    this.number = number
    this.#chunks = socket[Symbol.asyncIterator]() as AsyncIterator<Buffer>
    this.#closed = happens(socket, 'close')
  }

  /** The next frame, or undefined when the host has closed the connection. */
  async next(): Promise<FromHost | undefined> {
    for (;;) {
      const frame = this.#pending.next()
      if (!frame.done) return frame.value
      const chunk = await this.#chunk()
      if (chunk === undefined) return undefined
      this.#pending = this.#decoder.push(chunk)
    }
  }

  /** The next frame, which must be such a message. */
  async expect<T extends ToGuest['type']>(type: T): Promise<RequestOf<T>> {
    const frame = await this.next()
    if (frame?.kind === 'message' && frame.message.type === type) return frame.message as RequestOf<T>
    if (frame === undefined) throw new HostGone()
    throw new Error(`expected ${type}, got ${JSON.stringify(frame.kind === 'message' ? frame.message : frame.kind)}`)
  }

  say(...messages: ToHost[]): void {
    this.raw(...messages.map((message) => messageFrame(message)))
  }

  bulk(kind: BulkKind, content: string | Buffer): void {
    const data = Buffer.from(content)
    this.raw(encodeHeader(kind, data.length), data)
  }

  raw(...bytes: Buffer[]): void {
    if (!this.socket.destroyed) this.socket.write(Buffer.concat(bytes))
  }

  /** Writes at the pace at which the host reads. @returns False when it is gone. */
  async paced(bytes: Buffer): Promise<boolean> {
    if (this.socket.destroyed) return false
    if (!this.socket.write(bytes)) await Promise.race([happens(this.socket, 'drain'), this.#closed])
    return !this.socket.destroyed
  }

  /** Resolves when the host has closed the connection, whatever it still sent. */
  async closed(): Promise<void> {
    while ((await this.next()) !== undefined);
    this.socket.destroy()
    await this.#closed
  }

  async #chunk(): Promise<Buffer | undefined> {
    try {
      const chunk = await this.#chunks.next()
      return chunk.done ? undefined : chunk.value
    } catch {
      return undefined // reset, or destroyed at the test's end: to a guest both mean that the host is gone
    }
  }
}

/** Not `once` of node:events, which rejects when a host that is gone shows as an error. */
const happens = (socket: Socket, event: string): Promise<void> =>
  new Promise((resolve) => socket.once(event, () => resolve()))

/** A message as it comes: also one that no honest agent would send. */
export function messageFrame(message: object): Buffer {
  const payload = Buffer.from(JSON.stringify(message))
  return Buffer.concat([encodeHeader('message', payload.length), payload])
}

export const HELLO: Extract<ToHost, { type: 'hello' }> = {
  type: 'hello',
  protocol: 1,
  agent: 'stand-in',
  bootId: '1948efa9-7b09-435a-a69a-5b9f2a6858e1',
  capabilities: ['pty'],
  checksums: ['md5', 'sha256'],
}

export async function greet(host: HostPeer, hello: ToHost = HELLO): Promise<void> {
  await host.expect('hello')
  host.say(hello)
}

export class StandInAgent {
  readonly socketPath: string
  readonly #server: Server
  readonly #sockets = new Set<Socket>()
  /** What went wrong in a script: the test fails by it. */
  #failure: unknown
  connections = 0

  private constructor(socketPath: string, script: Script) {
    this.socketPath = socketPath
    this.#server = createServer((socket) => void this.#serve(socket, script))
  }

  /** Listens in a folder of its own, and is gone with it after the test. A script that throws fails the test. */
  static async listen(t: TestScope, script: Script): Promise<StandInAgent> {
    const folder = await temporaryFolder(t)
    const agent = new StandInAgent(path.join(folder, 'vsock.sock'), script)
    agent.#server.listen(agent.socketPath)
    await once(agent.#server, 'listening')
    t.after(() => agent.close())
    return agent
  }

  get link(): Link {
    return socketLink('vsock', this.socketPath, 9000)
  }

  /** Connections that the host has not closed yet. */
  get open(): number {
    return this.#sockets.size
  }

  /** Resolves when no connection is open. */
  async idle(): Promise<void> {
    while (this.#sockets.size > 0) await Promise.race([...this.#sockets].map((socket) => happens(socket, 'close')))
  }

  async close(): Promise<void> {
    for (const socket of this.#sockets) socket.destroy()
    this.#server.close()
    await once(this.#server, 'close')
    if (this.#failure !== undefined) throw this.#failure
  }

  async #serve(socket: Socket, script: Script): Promise<void> {
    this.#sockets.add(socket)
    const number = ++this.connections
    socket.on('error', () => undefined) // a host that is gone: `HostPeer` reports it as the end
    socket.on('close', () => this.#sockets.delete(socket))
    try {
      if (!(await acceptConnect(socket))) return
      await script(new HostPeer(socket, number))
    } catch (error) {
      if (!(error instanceof HostGone)) this.#failure ??= error
      socket.destroy()
    }
  }
}

/** Reads `CONNECT <port>` to its newline and answers it. @returns False when the host left before. */
async function acceptConnect(socket: Socket): Promise<boolean> {
  let line = ''
  while (!line.endsWith('\n')) {
    const byte = socket.read(1) as Buffer | null
    if (byte !== null) line += byte.toString('latin1')
    else if (socket.destroyed || socket.readableEnded) return false
    else await Promise.race([happens(socket, 'readable'), happens(socket, 'close')])
  }
  if (!/^CONNECT \d+\n$/.test(line)) throw new Error(`not a handshake: ${JSON.stringify(line)}`)
  socket.write('OK 1073741824\n')
  return true
}

/** A stand-in, and an agent of ours that talks to it with short time limits. */
export async function agentWith(
  t: TestScope,
  script: Script,
  options: { answerTimeoutMs?: number } = {},
): Promise<{ agent: Agent; guest: StandInAgent }> {
  const guest = await StandInAgent.listen(t, script)
  const agent = new Agent([guest.link], { answerTimeoutMs: 5_000, ...options })
  t.after(() => agent.close())
  return { agent, guest }
}

export const md5 = (content: Buffer): string => createHash('md5').update(content).digest('hex')

export interface HonestGuest {
  files: Map<string, Buffer>
  chunkBytes: number
  windowBytes: number
}

/** What an honest agent does with files, held in memory. Ends when the host closes. */
export function honest(guest: HonestGuest): Script {
  return async (host) => {
    await greet(host)
    for (;;) {
      const frame = await host.next()
      if (frame === undefined) return
      if (frame.kind !== 'message') throw new Error('data without an operation')
      const { message } = frame
      if (message.type === 'upload') await takeUpload(host, guest, message)
      else if (message.type === 'download') await giveDownload(host, guest, message)
      else if (message.type === 'ping') host.say({ type: 'pong', uptimeMs: 1 })
      else throw new Error(`no answer for ${message.type}`)
    }
  }
}

async function takeUpload(host: HostPeer, guest: HonestGuest, request: RequestOf<'upload'>): Promise<void> {
  const { chunkBytes, windowBytes } = guest
  host.say({ type: 'ready', chunkBytes, windowBytes, offset: 0 })
  const parts: Buffer[] = []
  let size = 0
  let acknowledged = 0
  for (;;) {
    const frame = await host.next()
    if (frame === undefined) return
    if (frame.kind === 'data') {
      parts.push(Buffer.from(frame.data))
      size += frame.data.length
      if (size - acknowledged > windowBytes)
        throw new Error(`${size - acknowledged} bytes unacknowledged, the window is ${windowBytes}`)
      if (size - acknowledged < windowBytes / 4) continue
      acknowledged = size
      host.say({ type: 'ack', offset: size })
      continue
    }
    if (frame.kind !== 'message' || frame.message.type !== 'complete')
      throw new Error('an upload holds data and complete')
    const content = Buffer.concat(parts)
    const checksum =
      request.checksum === 'md5' ? md5(content) : createHash(request.checksum).update(content).digest('hex')
    if (frame.message.size !== size || frame.message.checksum !== checksum || (request.size ?? size) !== size) {
      host.say({ type: 'error', code: 'checksum-mismatch', message: 'it is not what was announced' })
      return
    }
    guest.files.set(request.path, content)
    host.say({ type: 'complete', size, checksum })
    return
  }
}

async function giveDownload(
  host: HostPeer,
  guest: HonestGuest,
  { path: file, checksum }: RequestOf<'download'>,
): Promise<void> {
  const content = guest.files.get(file)
  if (content === undefined) {
    host.say({ type: 'error', code: 'not-found', message: `open ${file}: no such file` })
    return
  }
  const { chunkBytes, windowBytes } = guest
  host.say({ type: 'ready', chunkBytes, windowBytes, offset: 0, size: content.length, mode: 0o640, mtimeMs: 0 })
  let acknowledged = 0
  for (let offset = 0; offset < content.length; offset += chunkBytes) {
    const piece = content.subarray(offset, offset + chunkBytes)
    while (offset + piece.length - acknowledged > windowBytes) acknowledged = (await host.expect('ack')).offset
    host.bulk('data', piece)
  }
  host.say({ type: 'complete', size: content.length, checksum: createHash(checksum).update(content).digest('hex') })
  for (;;) {
    const frame = await host.next()
    if (frame === undefined || (frame.kind === 'message' && frame.message.type === 'complete')) return
    if (frame.kind !== 'message' || frame.message.type !== 'ack') throw new Error('a host only acknowledges a download')
  }
}
