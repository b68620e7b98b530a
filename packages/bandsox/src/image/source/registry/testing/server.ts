/** Small HTTP servers of a test's own, which remember what they were asked. */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { createServer as createTlsServer } from 'node:https'
import type { AddressInfo, Socket } from 'node:net'
import type { TestScope } from '../../../../testing/temporary-folder.js'

export interface AskedRequest {
  method: string
  /** With its query. */
  path: string
  headers: IncomingMessage['headers']
  body: string
}

export interface TestServer {
  /** `127.0.0.1:PORT` */
  host: string
  asked: AskedRequest[]
  /** Connections that are open now. */
  sockets: Set<Socket>
}

export type Handler = (request: AskedRequest, response: ServerResponse) => void

/** @param tls Key and certificate in PEM, for HTTPS. */
export async function serve(t: TestScope, handler: Handler, tls?: { key: string; cert: string }): Promise<TestServer> {
  const asked: AskedRequest[] = []
  const listener = async (incoming: IncomingMessage, response: ServerResponse) => {
    const chunks: Buffer[] = []
    for await (const chunk of incoming) chunks.push(chunk as Buffer)
    const { method = '', url = '', headers } = incoming
    const request = { method, path: url, headers, body: Buffer.concat(chunks).toString() }
    asked.push(request)
    handler(request, response)
  }
  const server: Server = tls === undefined ? createServer(listener) : createTlsServer(tls, listener)
  const sockets = new Set<Socket>()
  server.on('connection', (socket: Socket) => {
    sockets.add(socket)
    socket.once('close', () => sockets.delete(socket))
  })
  await once(server.listen(0, '127.0.0.1'), 'listening')
  t.after(() => {
    server.close()
    server.closeAllConnections()
  })
  return { host: `127.0.0.1:${(server.address() as AddressInfo).port}`, asked, sockets }
}

/** Resolves when the other side has ended its connections. */
export async function disconnected({ sockets }: TestServer): Promise<void> {
  // Not by once(), which rejects when a connection was reset.
  await Promise.all([...sockets].map((socket) => new Promise((resolve) => socket.once('close', resolve))))
}

export const digestOf = (content: string | Buffer): string =>
  `sha256:${createHash('sha256').update(content).digest('hex')}`

/** Answers with JSON. */
export function json(
  response: ServerResponse,
  status: number,
  value: unknown,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { 'content-type': 'application/json', ...headers }).end(JSON.stringify(value))
}
