import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer, type Socket } from 'node:net'
import path from 'node:path'
import { describe, it } from 'node:test'
import { openDescriptors } from '../../testing/descriptors.js'
import { hasCode } from '../../testing/errors.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { withQmp } from './qmp.js'

const GREETING = { QMP: { version: { qemu: { micro: 0, minor: 2, major: 7 } }, capabilities: ['oob'] } }
const EVENT = { event: 'STOP', timestamp: { seconds: 1, microseconds: 2 } }

interface Command {
  execute: string
  arguments?: unknown
}

const say = (socket: Socket, ...values: object[]) => {
  for (const value of values) socket.write(`${JSON.stringify(value)}\r\n`)
}

/** QEMU's control socket: greets, takes `qmp_capabilities`, and lets the test answer what follows. */
async function qemu(
  t: TestScope,
  answer: (socket: Socket, command: Command) => void,
  greet = (socket: Socket) => say(socket, GREETING),
) {
  const file = path.join(await temporaryFolder(t), 'qmp.sock')
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined).on('close', () => sockets.delete(socket))
    greet(socket)
    socket.on('data', (chunk) => {
      for (const line of String(chunk).trimEnd().split('\n')) {
        const command = JSON.parse(line) as Command
        if (command.execute === 'qmp_capabilities') say(socket, { return: {} })
        else answer(socket, command)
      }
    })
  })
  server.listen(file)
  await once(server, 'listening')
  t.after(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
    await once(server, 'close')
  })
  const idle = async () => {
    while (sockets.size > 0) await new Promise((resolve) => setImmediate(resolve))
  }
  return { file, idle }
}

describe('the QMP client', () => {
  it('negotiates, asks, and closes', async (t) => {
    const asked: Command[] = []
    const { file, idle } = await qemu(t, (socket, command) => {
      asked.push(command)
      say(socket, { return: { status: 'paused' } })
    })
    const answer = await withQmp(file, async (qmp) => {
      await qmp.execute('stop')
      return await qmp.execute('query-status', { x: 1 })
    })
    assert.deepEqual(answer, { status: 'paused' })
    assert.deepEqual(asked, [{ execute: 'stop' }, { execute: 'query-status', arguments: { x: 1 } }])
    await idle()
  })

  it('does not take events for answers', async (t) => {
    const { file } = await qemu(t, (socket) => say(socket, EVENT, EVENT, { return: {} }, EVENT))
    assert.deepEqual(await withQmp(file, (qmp) => qmp.execute('stop')), {})
  })

  it('reports what QEMU refuses in its own words', async (t) => {
    const { file, idle } = await qemu(t, (socket) =>
      say(socket, { error: { class: 'GenericError', desc: 'Resetting the VM' } }),
    )
    await assert.rejects(
      withQmp(file, (qmp) => qmp.execute('cont')),
      hasCode('vmm-control', /QEMU refused cont: Resetting the VM/),
    )
    await idle()
  })

  it('never waits without end, nor believes what is not QMP', async (t) => {
    const silent = () => undefined
    const cases: [string, (socket: Socket) => void, RegExp][] = [
      ['closes', (socket) => socket.end(), /closed its control socket before answering stop/],
      ['goes', (socket) => socket.destroy(), /stop/],
      ['is silent', silent, /did not answer stop within 60 ms/],
      ['sends a line without end', (socket) => socket.write('x'.repeat(2_000_000)), /more than 1048576 bytes/],
      ['sends no JSON', (socket) => socket.write('OK\n'), /control socket broke at stop/],
      ['sends neither answer nor event', (socket) => say(socket, { later: 1 }), /neither answer nor event/],
      ['sends an answer of another shape', (socket) => say(socket, { error: 'no' }), /neither answer nor event/],
      ['stops inside a line', (socket) => socket.end('{"return": {'), /control socket broke at stop/],
    ]
    for (const [what, attack, message] of cases) {
      const { file, idle } = await qemu(t, attack)
      await assert.rejects(
        // The others are to be found out by what they do, on a busy host too.
        withQmp(file, (qmp) => qmp.execute('stop'), { timeoutMs: attack === silent ? 60 : 10_000 }),
        hasCode('vmm-control', message),
        what,
      )
      await idle()
    }
  })

  it('waits for an answer no longer because of events', async (t) => {
    const { file, idle } = await qemu(t, (socket) => {
      const timer = setInterval(() => say(socket, EVENT), 10)
      socket.on('close', () => clearInterval(timer))
    })
    await assert.rejects(
      withQmp(file, (qmp) => qmp.execute('stop'), { timeoutMs: 80 }),
      hasCode('vmm-control', /within 80 ms/),
    )
    await idle()
  })

  it('takes nothing else for QEMU', async (t) => {
    const other = await qemu(
      t,
      () => undefined,
      (socket) => say(socket, { hello: 1 }),
    )
    await assert.rejects(
      withQmp(other.file, (qmp) => qmp.execute('stop')),
      hasCode('vmm-control', /did not greet as QMP/),
    )
    const mute = await qemu(
      t,
      () => undefined,
      () => undefined,
    )
    await assert.rejects(
      withQmp(mute.file, (qmp) => qmp.execute('stop'), { timeoutMs: 40 }),
      hasCode('vmm-control', /its greeting/),
    )
    await assert.rejects(
      withQmp(path.join(await temporaryFolder(t), 'no'), async () => 1),
      hasCode('vmm-control', /cannot reach/),
    )
  })

  it('closes when its user fails, and leaves no descriptor', async (t) => {
    const { file, idle } = await qemu(t, (socket) => say(socket, { return: {} }))
    const before = await openDescriptors()
    for (let round = 0; round < 10; round++)
      await assert.rejects(
        withQmp(file, () => Promise.reject(new Error('mine'))),
        /mine/,
      )
    await idle()
    assert.deepEqual(await openDescriptors(), before)
  })
})
