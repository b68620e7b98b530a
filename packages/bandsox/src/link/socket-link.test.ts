import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, stat, symlink } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import path from 'node:path'
import { describe, it } from 'node:test'
import { openDescriptors } from '../testing/descriptors.js'
import { hasCode } from '../testing/errors.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { socketLink } from './socket-link.js'

interface Device {
  socketPath: string
  /** Resolves when every connection to it is closed. */
  idle(): Promise<void>
}

/** A Unix socket server in the place of a vsock device; `answer` gets what the host wrote first. */
async function device(
  t: TestScope,
  answer: (socket: Socket, line: string) => void,
  name = 'vsock.sock',
): Promise<Device> {
  const socketPath = path.join(await temporaryFolder(t), name)
  return await listenAt(t, socketPath, answer)
}

async function listenAt(
  t: TestScope,
  socketPath: string,
  answer: (socket: Socket, line: string) => void,
): Promise<Device> {
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined).on('close', () => sockets.delete(socket))
    socket.once('data', (chunk) => answer(socket, String(chunk)))
  })
  server.listen(socketPath)
  await once(server, 'listening')
  t.after(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
    await once(server, 'close')
  })
  return {
    socketPath,
    async idle() {
      while (sockets.size > 0) await new Promise((resolve) => setImmediate(resolve))
    },
  }
}

async function readAll(socket: Socket): Promise<string> {
  let text = ''
  for await (const chunk of socket) text += String(chunk)
  return text
}

describe('a link', () => {
  it('asks for the port in one line, and opens on OK', async (t) => {
    let asked = ''
    const { socketPath } = await device(t, (socket, line) => {
      asked = line
      socket.write('OK 1073741824\n')
      socket.end('then this')
    })
    const socket = await socketLink('vsock', socketPath, 9_001).open()
    assert.equal(await readAll(socket), 'then this')
    assert.equal(asked, 'CONNECT 9001\n')
  })

  it('loses nothing that comes right behind OK', async (t) => {
    const { socketPath } = await device(t, (socket) => socket.end('OK 5\nfirst bytes\nand more'))
    assert.equal(await readAll(await socketLink('vsock', socketPath, 1).open()), 'first bytes\nand more')
  })

  it('takes a reply that comes in pieces', async (t) => {
    const { socketPath } = await device(t, (socket) => {
      socket.setNoDelay()
      const pieces = [...'OK 42\nx']
      const next = () => {
        const piece = pieces.shift()
        if (piece === undefined) socket.end()
        else socket.write(piece, () => setImmediate(next))
      }
      next()
    })
    assert.equal(await readAll(await socketLink('vsock', socketPath, 1).open()), 'x')
  })

  it('has no listeners of the handshake left on the stream, nor on the signal', async (t) => {
    const { socketPath } = await device(t, (socket) => socket.write('OK 5\n'))
    const controller = new AbortController()
    const socket = await socketLink('vsock', socketPath, 1).open(controller.signal)
    t.after(() => void socket.destroy())
    for (const event of ['readable', 'error', 'close', 'connect', 'data'])
      assert.equal(socket.listenerCount(event), 0, event)
    controller.abort() // would throw into a listener that was left
    assert.equal(socket.destroyed, false)
  })

  const refusals: [string, (socket: Socket) => void, RegExp][] = [
    ['the end instead of OK', (socket) => socket.end(), /does not listen/],
    ['the end in the middle of OK', (socket) => socket.end('OK 12'), /does not listen/],
    ['another word', (socket) => socket.write('HTTP/1.1 400 Bad Request\r\n'), /HTTP\/1.1 400/],
    ['OK without a number', (socket) => socket.write('OK\n'), /"OK" instead of OK/],
    ['OK with more than a number', (socket) => socket.write('OK 1 2\n'), /"OK 1 2"/],
    ['a line that never ends', (socket) => socket.write(`OK ${'1'.repeat(1_000)}`), /instead of OK/],
    ['bytes that would be obeyed by a terminal', (socket) => socket.write('\u001b]0;x\n'), /\\u001b/],
    ['an end without a word, with what it asked unread', (socket) => socket.destroy(), /does not listen|broke/],
  ]
  for (const [what, answer, message] of refusals) {
    it(`is refused by ${what}`, async (t) => {
      const { socketPath, idle } = await device(t, answer)
      await assert.rejects(socketLink('vsock', socketPath, 1).open(), hasCode('link-refused', message))
      await idle()
    })
  }

  it('is refused where no socket is, or nobody listens on it', async (t) => {
    const folder = await temporaryFolder(t)
    await assert.rejects(
      socketLink('serial', path.join(folder, 'no.sock'), 1).open(),
      hasCode('link-refused', /serial socket .*ENOENT/),
    )
    await assert.rejects(socketLink('serial', folder, 1).open(), hasCode('link-refused'))
  })

  it('that is aborted while it waits rejects with the reason and closes', async (t) => {
    const reason = new Error('enough')
    const controller = new AbortController()
    const { socketPath, idle } = await device(t, () => controller.abort(reason))
    await assert.rejects(socketLink('vsock', socketPath, 1).open(controller.signal), (error) => error === reason)
    await idle()
    await assert.rejects(socketLink('vsock', socketPath, 1).open(controller.signal), (error) => error === reason)
  })

  it('that is aborted between connection and handshake does not wait for an answer that never comes', async (t) => {
    const { socketPath, idle } = await device(t, () => undefined, 's')
    const deep = await deepFolder(path.dirname(socketPath))
    const far = await listenAt(t, path.join(deep.reachable, 's'), () => undefined)
    for (const file of [socketPath, path.join(deep.folder, 's')]) {
      // Wherever the abort falls in the course of events, the wait ends.
      for (let turn = 0; turn < 12; turn++) {
        const controller = new AbortController()
        const opening = socketLink('vsock', file, 1).open(controller.signal)
        opening.catch(() => undefined)
        for (let tick = 0; tick < turn; tick++)
          await (turn % 2 === 0 ? Promise.resolve() : new Promise((resolve) => setImmediate(resolve)))
        controller.abort(new Error('enough'))
        await assert.rejects(opening, /enough/)
      }
    }
    await idle()
    await far.idle()
  })

  it('leaves no descriptor behind, however it ends', async (t) => {
    const good = await device(t, (socket) => socket.write('OK 5\n'))
    const bad = await device(t, (socket) => socket.end('no\n'))
    const before = await openDescriptors()
    for (let round = 0; round < 20; round++) {
      await assert.rejects(socketLink('vsock', bad.socketPath, 1).open())
      ;(await socketLink('vsock', good.socketPath, 1).open()).destroy()
    }
    await Promise.all([good.idle(), bad.idle()])
    assert.deepEqual(await openDescriptors(), before)
  })

  it('reaches a socket whose path the kernel would not take, in its own folder', async (t) => {
    const deep = await deepFolder(await temporaryFolder(t))
    assert.ok(Buffer.byteLength(path.join(deep.folder, 'vsock.sock')) > 200)
    const { idle } = await listenAt(t, path.join(deep.reachable, 'vsock.sock'), (socket) => socket.end('OK 5\nhere'))
    assert.ok((await stat(path.join(deep.folder, 'vsock.sock'))).isSocket())
    const before = await openDescriptors()
    assert.equal(await readAll(await socketLink('vsock', path.join(deep.folder, 'vsock.sock'), 1).open()), 'here')
    await idle()
    assert.deepEqual(await openDescriptors(), before)
    await assert.rejects(
      socketLink('vsock', path.join(deep.folder, 'other.sock'), 1).open(),
      hasCode('link-refused', /ENOENT/),
    )
    await assert.rejects(
      socketLink('vsock', path.join(deep.folder, 'none', 'v.sock'), 1).open(),
      hasCode('link-refused', /ENOENT/),
    )
    assert.deepEqual(await openDescriptors(), before)
  })
})

/** A folder with a path of more than 200 bytes, and a short way to it for a server, which has no `/proc/self/fd` trick. */
async function deepFolder(root: string): Promise<{ folder: string; reachable: string }> {
  const folder = path.join(root, 'd'.repeat(100), 'e'.repeat(100))
  await mkdir(folder, { recursive: true })
  const reachable = path.join(root, 'short')
  await symlink(folder, reachable)
  return { folder, reachable }
}
