/** Forwarded ports, with the agent's own binary at the other end. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Server, type Socket } from 'node:net'
import { describe, it } from 'node:test'
import type { BandSoxError, ForwardOptions, PortForward } from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import { forwardConnection } from '../guest/forward.js'
import { agentWith, greet, HELLO } from '../guest/testing/stand-in-agent.js'
import { openDescriptors } from '../testing/descriptors.js'
import { hasCode } from '../testing/errors.js'
import { seededRandom } from '../testing/random.js'
import { realAgent } from '../testing/real-agent.js'
import type { TestScope } from '../testing/temporary-folder.js'
import { encodeHeader } from '../wire/frame.js'
import { forwardPort } from './port-forward.js'

async function service(t: TestScope, serve: (socket: Socket) => void): Promise<{ port: number; server: Server }> {
  const sockets = new Set<Socket>()
  const server = createServer({ allowHalfOpen: true }, (socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined).on('close', () => sockets.delete(socket))
    serve(socket)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => {
    for (const socket of sockets) socket.destroy()
    server.close()
  })
  return { port: (server.address() as AddressInfo).port, server }
}

async function forwarded(
  t: TestScope,
  agent: Agent,
  guestPort: number,
  options: Partial<ForwardOptions> = {},
): Promise<{ forward: PortForward; failures: BandSoxError[] }> {
  const failures: BandSoxError[] = []
  const forward = await forwardPort(async () => agent, {
    guestPort,
    onFailure: (error) => failures.push(error),
    ...options,
  })
  t.after(() => forward.close())
  return { forward, failures }
}

const client = ({ hostPort }: PortForward): Socket =>
  connect({ port: hostPort, host: '127.0.0.1', allowHalfOpen: true })

async function readAll(socket: Socket): Promise<Buffer> {
  const parts: Buffer[] = []
  for await (const chunk of socket.iterator({ destroyOnReturn: false })) parts.push(chunk as Buffer)
  return Buffer.concat(parts)
}

async function idle({ connections }: PortForward): Promise<void> {
  while (connections.open > 0) await new Promise((resolve) => setTimeout(resolve, 2))
}

describe('a forwarded port', () => {
  it('passes fifty connections at once, each to its end and half-closed', async (t) => {
    const { port } = await service(t, async (socket) =>
      socket.end(Buffer.concat([Buffer.from('got '), await readAll(socket)])),
    )
    const { forward, failures } = await forwarded(t, await realAgent(t), port)
    const before = await openDescriptors()
    const answers = await Promise.all(
      Array.from({ length: 50 }, async (_, index) => {
        const socket = client(forward)
        socket.end(`hello ${index}`)
        return String(await readAll(socket))
      }),
    )
    assert.deepEqual(
      answers,
      answers.map((_, index) => `got hello ${index}`),
    )
    await idle(forward)
    assert.deepEqual(forward.connections, { open: 0, opened: 50, failed: 0 })
    assert.deepEqual(failures, [])
    assert.ok((await openDescriptors()).length <= before.length + 4) // the agent's idle connections
  })

  it('carries much both ways at once', async (t) => {
    const content = seededRandom(3).bytes(8_000_000)
    const { port } = await service(t, (socket) => socket.pipe(socket))
    const { forward } = await forwarded(t, await realAgent(t), port)
    const socket = client(forward)
    socket.end(content)
    assert.ok((await readAll(socket)).equals(content))
  })

  it('lets a client send all of its own before it reads anything', async (t) => {
    const content = seededRandom(4).bytes(3_000_000)
    const { port } = await service(t, async (socket) => {
      socket.write(content)
      socket.end(String((await readAll(socket)).length))
    })
    const { forward } = await forwarded(t, await realAgent(t), port)
    const socket = client(forward)
    await new Promise<void>((resolve) => socket.write(content, () => resolve()))
    socket.end()
    const answer = await readAll(socket)
    assert.ok(answer.subarray(0, content.length).equals(content))
    assert.equal(String(answer.subarray(content.length)), String(content.length))
  })

  it('resets a client whom the guest refuses, and says so', async (t) => {
    const { port, server } = await service(t, () => undefined)
    server.close()
    const { forward, failures } = await forwarded(t, await realAgent(t), port)
    const [error] = (await once(client(forward), 'error')) as [NodeJS.ErrnoException]
    assert.equal(error.code, 'ECONNRESET')
    await idle(forward)
    assert.equal(failures[0]?.code, 'link-refused')
    assert.match(failures[0]?.message ?? '', /connection refused/)
    assert.equal(forward.connections.failed, 1)
  })

  it('passes a reset on, either way', async (t) => {
    const ends: Promise<unknown>[] = []
    const { port } = await service(t, (socket) => {
      ends.push(new Promise((resolve) => socket.once('close', resolve)))
      socket.once('data', (data) => (String(data) === 'reset me' ? socket.resetAndDestroy() : socket.write('here')))
    })
    const { forward, failures } = await forwarded(t, await realAgent(t), port)
    const first = client(forward)
    first.write('reset me')
    const [error] = (await once(first, 'error')) as [NodeJS.ErrnoException]
    assert.equal(error.code, 'ECONNRESET')
    await idle(forward)
    assert.equal(failures[0]?.code, 'link-lost')
    const second = client(forward)
    second.write('hello')
    await once(second, 'data')
    second.resetAndDestroy()
    await Promise.all(ends)
    await idle(forward)
    assert.equal(forward.connections.failed, 1, 'a client that goes is no failure')
  })

  it('resets what is open when it is closed, or aborted', async (t) => {
    const { port } = await service(t, (socket) => void socket.write('here'))
    const agent = await realAgent(t)
    for (const how of ['close', 'abort'] as const) {
      const controller = new AbortController()
      const { forward, failures } = await forwarded(t, agent, port, { signal: controller.signal })
      const socket = client(forward)
      await once(socket, 'data')
      const reset = once(socket, 'error') as Promise<[NodeJS.ErrnoException]>
      if (how === 'abort') controller.abort()
      await forward.close()
      assert.equal((await reset)[0].code, 'ECONNRESET')
      assert.deepEqual(failures, [])
      const refused = client(forward)
      assert.equal(((await once(refused, 'error')) as [NodeJS.ErrnoException])[0].code, 'ECONNREFUSED')
    }
  })

  it('resets its clients when the link breaks, or the agent cannot forward', async (t) => {
    for (const capabilities of [['connect'], ['pty']]) {
      const { agent } = await agentWith(t, async (host) => {
        await greet(host, { ...HELLO, capabilities })
        if (!capabilities.includes('connect')) return await host.closed()
        await host.expect('connect')
        host.say({ type: 'connected' })
        host.socket.destroy()
      })
      const { forward, failures } = await forwarded(t, agent, 80)
      const [error] = (await once(client(forward), 'error')) as [NodeJS.ErrnoException]
      assert.equal(error.code, 'ECONNRESET')
      await idle(forward)
      assert.equal(failures[0]?.code, capabilities.includes('connect') ? 'link-lost' : 'agent-incompatible')
    }
  })

  it('goes on over another connection to the guest when one breaks before anything was passed on', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host, { ...HELLO, capabilities: ['connect'] })
      await host.expect('connect')
      if (host.number < 3) return void host.socket.destroy()
      host.say({ type: 'connected' }, { type: 'eof' })
      for (let frame = await host.next(); frame !== undefined; frame = await host.next())
        if (frame.kind === 'message' && frame.message.type === 'eof') host.say({ type: 'ack', offset: 4 })
    })
    const { forward, failures } = await forwarded(t, agent, 80)
    const socket = client(forward)
    socket.end('word')
    assert.equal(String(await readAll(socket)), '')
    await idle(forward)
    assert.deepEqual(failures, [])
  })

  it('trusts no guest: what breaks the rules of its connection ends that', async (t) => {
    const lies: [string, (host: Parameters<Parameters<typeof agentWith>[1]>[0]) => void][] = [
      ['an ack of what was not sent', (host) => host.say({ type: 'ack', offset: 1 })],
      ['an ack of all before the end', (host) => host.say({ type: 'ack', offset: 0 })],
      ['two ends', (host) => host.say({ type: 'eof' }, { type: 'eof' })],
      ['more than the window', (host) => Array.from({ length: 400 }, () => host.bulk('data', Buffer.alloc(65_536)))],
      ['output of a command', (host) => host.bulk('stdout', 'x')],
      ['another answer', (host) => host.say({ type: 'pong', uptimeMs: 1 })],
    ]
    for (const [what, lie] of lies) {
      const { agent } = await agentWith(t, async (host) => {
        await greet(host, { ...HELLO, capabilities: ['connect'] })
        await host.expect('connect')
        host.say({ type: 'connected' })
        lie(host)
        await host.closed()
      })
      const { forward, failures } = await forwarded(t, agent, 80)
      const socket = client(forward)
      socket.on('error', () => undefined).pause() // it reads nothing, so nothing is acknowledged for it
      while (forward.connections.failed === 0) await new Promise((resolve) => setTimeout(resolve, 2))
      socket.destroy()
      await idle(forward)
      assert.equal(failures[0]?.code, 'guest-protocol', what)
    }
  })

  it("lives on for the client's last words when the guest ended first, and judges what the guest says then", async (t) => {
    for (const last of ['ack', 'eof'] as const) {
      let connections = 0
      const { agent } = await agentWith(t, async (host) => {
        connections++
        await greet(host, { ...HELLO, capabilities: ['connect'] })
        if ((await host.next()) === undefined) return
        host.say({ type: 'connected' }, { type: 'eof' })
        for (let frame = await host.next(); frame !== undefined; frame = await host.next()) {
          if (frame.kind !== 'message' || frame.message.type !== 'eof') continue
          await new Promise((resolve) => setTimeout(resolve, 100)) // the client's socket is closed by now
          host.say(last === 'ack' ? { type: 'ack', offset: 4 } : { type: 'eof' })
        }
      })
      const { forward, failures } = await forwarded(t, agent, 80)
      const socket = client(forward)
      socket.end('word')
      await readAll(socket)
      await idle(forward)
      agent.discard(await agent.acquire())
      assert.equal(connections, last === 'ack' ? 1 : 2, 'a connection in step is used again')
      assert.deepEqual(
        failures.map(({ code }) => code),
        last === 'ack' ? [] : ['guest-protocol'],
      )
    }
  })

  it('gathers what a guest sends byte by byte', async (t) => {
    const count = 131_072
    const sliver = Buffer.concat([encodeHeader('data', 1), Buffer.from('x')])
    const { agent } = await agentWith(t, async (host) => {
      await greet(host, { ...HELLO, capabilities: ['connect'] })
      await host.expect('connect')
      host.say({ type: 'connected' })
      host.raw(Buffer.alloc(count * sliver.length, sliver))
      host.say({ type: 'eof' })
      for (let frame = await host.next(); frame !== undefined; frame = await host.next())
        if (frame.kind === 'message' && frame.message.type === 'eof') host.say({ type: 'ack', offset: 0 })
    })
    const server = createServer({ allowHalfOpen: true, pauseOnConnect: true })
    server.listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.after(() => void server.close())
    const theirs = connect({ port: (server.address() as AddressInfo).port, host: '127.0.0.1', allowHalfOpen: true })
    const [ours] = (await once(server, 'connection')) as [Socket]
    let writes = 0
    const write = ours.write.bind(ours) as (...given: unknown[]) => boolean
    ours.write = (...given: unknown[]) => {
      writes++
      return write(...given)
    }
    theirs.end()
    const [received] = await Promise.all([readAll(theirs), forwardConnection(agent, ours, { port: 80 })])
    assert.equal(received.length, count)
    assert.ok(writes < count / 100, `${writes} writes were made of it`)
    agent.close()
  })

  it('refuses what is no port and no address before it listens, and says what is in use', async (t) => {
    const { agent } = await agentWith(t, async () => undefined)
    const find = async () => agent
    for (const options of [
      { guestPort: 0 },
      { guestPort: 65_536 },
      { guestPort: 1.5 },
      { guestPort: 80, hostPort: -1 },
      { guestPort: 80, hostAddress: 'no address' },
      { guestPort: 80, hostAddress: '192.0.2.1' },
      { guestPort: 80, guestHost: '' },
      { guestPort: 80, guestHost: 'x'.repeat(256) },
    ])
      await assert.rejects(forwardPort(find, options), hasCode('bad-request'), JSON.stringify(options))
    const { forward } = await forwarded(t, agent, 80)
    await assert.rejects(
      forwardPort(find, { guestPort: 80, hostPort: forward.hostPort }),
      hasCode('host-resource', /port is in use/),
    )
    const aborted = AbortSignal.abort(new Error('enough'))
    await assert.rejects(forwardPort(find, { guestPort: 80, signal: aborted }), /enough/)
  })
})
