/** A server of files, as good or as bad as a test needs it: with or without ranges, breaking off, refusing. */
import { once } from 'node:events'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import type { TestScope } from './temporary-folder.js'

export interface FileServer {
  /** Without a slash at its end. */
  url: string
  files: Map<string, Buffer>
  /** What was asked for, in this order: `/name`, or `/name bytes=5-`. */
  requests: string[]
  /** False: every answer is the whole file. */
  hasRanges: boolean
  /** False: the length is not told. */
  tellsLength: boolean
  /** Bytes after which an answer breaks off, of the next answers with a body, one each. */
  cuts: number[]
  /** Statuses that the next requests get in place of an answer. */
  refusals: number[]
  /** Pieces of an answer go out at this pace. */
  pauseMs: number
  /** `Authorization` that is asked for. */
  authorization: string | undefined
  close(): Promise<void>
}

const PIECE = 16 * 1024

export async function fileServer(t: TestScope, files: Record<string, Buffer | string> = {}): Promise<FileServer> {
  const server = createServer((request, response) => {
    void answer(self, request, response)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const close = async () => {
    server.closeAllConnections()
    await new Promise<void>((resolve) => server.close(() => resolve()))
  }
  const self: FileServer = {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    files: new Map(Object.entries(files).map(([name, content]) => [name, Buffer.from(content)])),
    requests: [],
    hasRanges: true,
    tellsLength: true,
    cuts: [],
    refusals: [],
    pauseMs: 0,
    authorization: undefined,
    close,
  }
  t.after(close)
  return self
}

async function answer(self: FileServer, request: IncomingMessage, response: ServerResponse): Promise<void> {
  const name = decodeURIComponent(new URL(request.url ?? '/', 'http://host').pathname)
  const { range } = request.headers
  self.requests.push(range === undefined ? name : `${name} ${range}`)
  const refusal = self.refusals.shift()
  const content = self.files.get(name)
  const isAllowed = self.authorization === undefined || request.headers.authorization === self.authorization
  if (refusal !== undefined || content === undefined || !isAllowed) {
    response.writeHead(refusal ?? (isAllowed ? 404 : 401)).end('no')
    return
  }
  const start = self.hasRanges ? Number(/^bytes=(\d+)-$/.exec(range ?? '')?.[1] ?? 0) : 0
  if (start > 0 && start >= content.length) {
    response.writeHead(416, { 'content-range': `bytes */${content.length}` }).end()
    return
  }
  const body = content.subarray(start)
  const length = self.tellsLength ? { 'content-length': String(body.length) } : {}
  const part = start > 0 ? { 'content-range': `bytes ${start}-${content.length - 1}/${content.length}` } : {}
  response.writeHead(start > 0 ? 206 : 200, { ...length, ...part })
  const cut = self.cuts.shift()
  for (let at = 0; at < body.length && !response.destroyed; at += PIECE) {
    if (cut !== undefined && at >= cut) {
      response.destroy()
      return
    }
    await new Promise((resolve) => response.write(body.subarray(at, at + PIECE), resolve))
    if (self.pauseMs > 0) await new Promise((resolve) => setTimeout(resolve, self.pauseMs))
  }
  response.end()
}
