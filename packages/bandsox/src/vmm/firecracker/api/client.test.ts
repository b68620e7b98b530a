import assert from 'node:assert/strict'
import { EventEmitter, once } from 'node:events'
import { mkdir, rename, symlink } from 'node:fs/promises'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import { createServer as createSocketServer, type Socket } from 'node:net'
import path from 'node:path'
import { describe, it } from 'node:test'
import { type BandSoxError, isSystemError } from '@bandsox/sdk'
import { openDescriptors } from '../../../testing/descriptors.js'
import { hasCode } from '../../../testing/errors.js'
import { type TestScope, temporaryFolder } from '../../../testing/temporary-folder.js'
import { FirecrackerApi } from './client.js'
import { FirecrackerFault, FirecrackerNoAnswer, type NoAnswerReason } from './fault.js'

interface Call {
  method: string
  path: string
  body: string
  reply: ServerResponse
  socket: Socket
}

const done = ({ reply }: Call) => void reply.writeHead(204).end()
const say = ({ reply }: Call, value: unknown, status = 200) =>
  void reply.writeHead(status, { 'content-type': 'application/json' }).end(JSON.stringify(value))
const silent = () => undefined

const INFO = { id: 'vm1', state: 'Running', vmm_version: '1.16.1', app_name: 'Firecracker' }

/** Answers at a Unix socket as the test says; the connections that it has had are in `sockets`. */
async function firecracker(t: TestScope, answer: (call: Call) => void, folder?: string) {
  const socketPath = path.join(folder ?? (await temporaryFolder(t)), 'api.sock')
  const calls: Call[] = []
  const sockets: Socket[] = []
  const server = createServer(async (request: IncomingMessage, reply: ServerResponse) => {
    for (const end of [request, reply]) end.on('error', () => undefined) // of a client that goes away
    let body = ''
    for await (const chunk of request) body += chunk
    const call = { method: request.method ?? '', path: request.url ?? '', body, reply, socket: request.socket }
    calls.push(call)
    answer(call)
  })
  server.on('connection', (socket) => {
    sockets.push(socket)
    socket.on('error', () => undefined)
  })
  server.listen(socketPath)
  await once(server, 'listening')
  const stop = async () => {
    for (const socket of sockets) socket.destroy()
    if (!server.listening) return
    server.close()
    await once(server, 'close')
  }
  t.after(stop)
  return { socketPath, calls, sockets, stop }
}

async function firecrackerWithApi(
  t: TestScope,
  answer: (call: Call) => void,
  options: ConstructorParameters<typeof FirecrackerApi>[1] = {},
) {
  const host = await firecracker(t, answer)
  const api = new FirecrackerApi(host.socketPath, options)
  t.after(() => api.close())
  return { ...host, api }
}

/** Not by `once`, which also fails with whatever broke the socket. */
const closed = async (socket: Socket | undefined) => {
  if (socket === undefined || socket.destroyed) return
  await new Promise((resolve) => socket.once('close', resolve))
}

const hasNoAnswer = (reason: NoAnswerReason, mayHaveTakenEffect: boolean, message: RegExp) => (error: unknown) => {
  hasCode('vmm-control', message)(error)
  assert.ok(error instanceof FirecrackerNoAnswer)
  assert.equal(error.reason, reason, error.message)
  assert.equal(error.mayHaveTakenEffect, mayHaveTakenEffect)
  assert.equal(/may have taken effect/.test(error.message), mayHaveTakenEffect)
  return true
}

describe("the client of Firecracker's API", () => {
  it('sends each change to where it belongs', async (t) => {
    const { api, calls } = await firecrackerWithApi(t, done)
    const limiter = {
      bandwidth: { size: 1024, refill_time: 100, one_time_burst: 10 },
      ops: { size: 5, refill_time: 1 },
    }
    const changes: [Promise<void>, string, string, unknown][] = []
    const add = (change: Promise<void>, method: string, at: string, body: unknown) =>
      changes.push([change, method, at, body])
    const machine = { vcpu_count: 2, mem_size_mib: 256, huge_pages: '2M', track_dirty_pages: true } as const
    add(api.putMachineConfig(machine), 'PUT', '/machine-config', machine)
    const boot = { kernel_image_path: 'vmlinux', initrd_path: 'initrd', boot_args: 'quiet' }
    add(api.putBootSource(boot), 'PUT', '/boot-source', boot)
    const drive = {
      drive_id: 'root',
      path_on_host: 'd',
      is_root_device: false,
      is_read_only: true,
      rate_limiter: limiter,
    }
    add(api.putDrive(drive), 'PUT', '/drives/root', drive)
    add(api.patchDrive({ drive_id: 'root', path_on_host: 'e' }), 'PATCH', '/drives/root', {
      drive_id: 'root',
      path_on_host: 'e',
    })
    const net = { iface_id: 'eth0', host_dev_name: 'tap0', mtu: 1400, rx_rate_limiter: limiter }
    add(api.putNetworkInterface(net), 'PUT', '/network-interfaces/eth0', net)
    add(api.patchNetworkInterface({ iface_id: 'eth0' }), 'PATCH', '/network-interfaces/eth0', { iface_id: 'eth0' })
    add(api.putVsock({ guest_cid: 3, uds_path: 'v.sock' }), 'PUT', '/vsock', { guest_cid: 3, uds_path: 'v.sock' })
    add(api.putEntropy(), 'PUT', '/entropy', {})
    const balloon = { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 1 }
    add(api.putBalloon(balloon), 'PUT', '/balloon', balloon)
    add(api.patchBalloon({ amount_mib: 64 }), 'PATCH', '/balloon', { amount_mib: 64 })
    const interval = { stats_polling_interval_s: 5 }
    add(api.patchBalloonStatistics(interval), 'PATCH', '/balloon/statistics', interval)
    add(api.putLogger({ log_path: 'l', level: 'Info' }), 'PUT', '/logger', { log_path: 'l', level: 'Info' })
    add(api.putMetrics({ metrics_path: 'm' }), 'PUT', '/metrics', { metrics_path: 'm' })
    const mmds = { version: 'V2', network_interfaces: ['eth0'] } as const
    add(api.putMmdsConfig({ ...mmds, network_interfaces: ['eth0'] }), 'PUT', '/mmds/config', mmds)
    add(api.putMmds({ a: { b: null } }), 'PUT', '/mmds', { a: { b: null } })
    add(api.patchMmds({ a: null }), 'PATCH', '/mmds', { a: null })
    add(api.putSerial({ serial_out_path: 's' }), 'PUT', '/serial', { serial_out_path: 's' })
    add(api.start(), 'PUT', '/actions', { action_type: 'InstanceStart' })
    add(api.sendCtrlAltDel(), 'PUT', '/actions', { action_type: 'SendCtrlAltDel' })
    add(api.flushMetrics(), 'PUT', '/actions', { action_type: 'FlushMetrics' })
    add(api.pause(), 'PATCH', '/vm', { state: 'Paused' })
    add(api.resume(), 'PATCH', '/vm', { state: 'Resumed' })
    const snapshot = { snapshot_type: 'Diff', snapshot_path: 's', mem_file_path: 'm' } as const
    add(api.createSnapshot(snapshot), 'PUT', '/snapshot/create', snapshot)
    const load = {
      snapshot_path: 's',
      mem_backend: { backend_type: 'File', backend_path: 'm' } as const,
      network_overrides: [{ iface_id: 'eth0', host_dev_name: 'tap1' }],
      vsock_override: { uds_path: 'w.sock' },
      clock_realtime: true,
      resume_vm: true,
    }
    add(api.loadSnapshot(load), 'PUT', '/snapshot/load', load)
    await Promise.all(changes.map(([change]) => change))
    assert.deepEqual(
      calls.map(({ method, path, body }) => [method, path, JSON.parse(body)]),
      changes.map(([, method, at, body]) => [method, at, body]),
    )
    assert.ok(calls.every(({ reply }) => reply.req.headers['content-type'] === 'application/json'))
  })

  it('sends no id where it is no longer one', async (t) => {
    const { api, calls } = await firecrackerWithApi(t, done)
    await api.patchDrive({ drive_id: '../vm?a b' })
    assert.equal(calls[0]?.path, '/drives/..%2Fvm%3Fa%20b')
  })

  it('reads what Firecracker says of itself, whatever it says besides', async (t) => {
    const machine = { vcpu_count: 1, mem_size_mib: 128, smt: false, track_dirty_pages: false, huge_pages: 'None' }
    const statistics = { target_pages: 1, actual_pages: 2, target_mib: 3, actual_mib: 4, free_memory: 1.8e19 }
    const drive = { drive_id: 'root', path_on_host: 'd', is_root_device: true, is_read_only: true }
    const answers: Record<string, unknown> = {
      '/': { ...INFO, later: 1 },
      '/version': { firecracker_version: '1.16.1' },
      '/machine-config': machine,
      '/balloon': { amount_mib: 1, deflate_on_oom: false },
      '/balloon/statistics': statistics,
      '/mmds': { a: null, b: [1] },
      '/vm/config': {
        'boot-source': { kernel_image_path: 'k', initrd_path: null, boot_args: 'quiet' },
        drives: [{ ...drive, partuuid: null, rate_limiter: { bandwidth: { size: 1, refill_time: 2 }, ops: null } }],
        'machine-config': machine,
        'network-interfaces': [],
        vsock: null,
        pmem: [],
      },
    }
    const { api, calls } = await firecrackerWithApi(t, (call) => say(call, answers[call.path]))
    assert.deepEqual(await api.describe(), INFO)
    assert.equal(await api.version(), '1.16.1')
    assert.deepEqual(await api.machineConfig(), machine)
    assert.deepEqual(await api.balloon(), answers['/balloon'])
    assert.deepEqual(await api.balloonStatistics(), statistics)
    assert.deepEqual(await api.getMmds(), { a: null, b: [1] })
    assert.deepEqual(await api.vmConfig(), {
      'boot-source': { kernel_image_path: 'k', boot_args: 'quiet' },
      drives: [{ ...drive, rate_limiter: { bandwidth: { size: 1, refill_time: 2 } } }],
      'machine-config': machine,
      'network-interfaces': [],
    })
    assert.ok(calls.every(({ method, body }) => method === 'GET' && body === ''))
  })

  it("tells what Firecracker refuses in Firecracker's words", async (t) => {
    const text = 'Vsock config error: Cannot create backend for vsock device: Address already in use (os error 98)'
    const { api } = await firecrackerWithApi(t, (call) => say(call, { fault_message: text }, 400))
    await assert.rejects(api.putVsock({ guest_cid: 3, uds_path: 'v.sock' }), (error) => {
      hasCode('vmm-control')(error)
      assert.ok(error instanceof FirecrackerFault)
      assert.equal(error.message, `Firecracker refused PUT /vsock: ${text}`)
      assert.deepEqual([error.status, error.method, error.path, error.faultMessage], [400, 'PUT', '/vsock', text])
      return true
    })
    await assert.rejects(api.version(), FirecrackerFault)
  })

  it('shows a refusal of whatever shape, in bounds and on one line', async (t) => {
    const cases: [string, RegExp][] = [
      [
        '{ "error": "Payload too large.\nAll previous requests will be dropped." }',
        /: Payload too large. All previous .*\.$/,
      ],
      ['no JSON\u001b[31m\n', /: no JSON\ufffd\[31m$/],
      ['{"other": 1}', /: \{"other": 1\}$/],
      ['', /: HTTP status 413, without a reason$/],
      [JSON.stringify({ fault_message: 'x'.repeat(60_000) }), /: x{2000}$/],
    ]
    for (const [body, message] of cases) {
      const { api } = await firecrackerWithApi(t, ({ reply }) => void reply.writeHead(413).end(body))
      await assert.rejects(api.putMmds({}), (error) => error instanceof FirecrackerFault && message.test(error.message))
    }
  })

  it('keeps one connection, and makes another when it is gone', async (t) => {
    const { api, sockets } = await firecrackerWithApi(t, (call) => (call.path === '/' ? say(call, INFO) : done(call)))
    await Promise.all([api.pause(), api.resume(), api.describe()])
    await api.resume()
    assert.equal(sockets.length, 1)
    sockets[0]?.destroy()
    await closed(sockets[0])
    assert.deepEqual(await api.describe(), INFO) // which may be asked before our end has heard of it
    await api.pause()
    assert.equal(sockets.length, 2)
  })

  it('asks one thing at a time, in order, and lets nobody wait for whom he gave up', async (t) => {
    const waiting: Call[] = []
    const arrivals = new EventEmitter()
    const { api, calls } = await firecrackerWithApi(t, (call) => {
      waiting.push(call)
      arrivals.emit('call')
    })
    const first = once(arrivals, 'call')
    const slow = api.pause()
    const given = new AbortController()
    const impatient = api.flushMetrics({ signal: given.signal })
    const last = api.resume()
    await first
    given.abort(new Error('enough'))
    await assert.rejects(impatient, /enough/)
    assert.equal(calls.length, 1)
    const second = once(arrivals, 'call')
    for (const call of waiting.splice(0)) done(call)
    await slow
    await second
    assert.deepEqual(
      calls.map(({ body }) => body),
      ['{"state":"Paused"}', '{"state":"Resumed"}'],
    )
    for (const call of waiting.splice(0)) done(call)
    await last
  })

  it('waits no longer than its limit, and counts it from when the turn has come', async (t) => {
    const { api, sockets } = await firecrackerWithApi(t, (call) => (call.path === '/vm' ? silent() : done(call)), {
      timeoutMs: 150,
    })
    const stuck = api.pause()
    const behind = api.flushMetrics({ timeoutMs: 100 })
    await assert.rejects(stuck, hasNoAnswer('silent', true, /PATCH \/vm: none came within 150 ms/))
    await behind
    await assert.rejects(api.resume({ timeoutMs: 20 }), hasNoAnswer('silent', true, /within 20 ms/))
    await closed(sockets[0])
  })

  it('gives what takes long a limit of its own', async (t) => {
    const { api } = await firecrackerWithApi(t, silent, { timeoutMs: 1, startTimeoutMs: 30, snapshotTimeoutMs: 40 })
    const create = { snapshot_path: 's', mem_file_path: 'm' }
    const load = { snapshot_path: 's', mem_backend: { backend_type: 'File', backend_path: 'm' } as const }
    await assert.rejects(api.start({ timeoutMs: undefined }), hasNoAnswer('silent', true, /within 30 ms/))
    await assert.rejects(api.createSnapshot(create), hasNoAnswer('silent', true, /within 40 ms/))
    await assert.rejects(api.loadSnapshot(load), hasNoAnswer('silent', true, /within 40 ms/))
    await assert.rejects(api.describe(), hasNoAnswer('silent', false, /within 1 ms/))
  })

  it('breaks off when told to, with the reason given, and can be used again', async (t) => {
    const given = new AbortController()
    const { api, sockets, calls } = await firecrackerWithApi(t, (call) => {
      if (calls.length === 1) given.abort(new Error('changed my mind'))
      else done(call)
    })
    await assert.rejects(api.pause({ signal: given.signal }), /changed my mind/)
    await closed(sockets[0])
    await assert.rejects(api.pause({ signal: given.signal }), /changed my mind/)
    assert.equal(calls.length, 1)
    await api.resume()
    assert.equal(sockets.length, 2)
  })

  it('breaks off in the middle of an answer', async (t) => {
    const given = new AbortController()
    const { api, sockets } = await firecrackerWithApi(t, ({ reply }) => {
      reply.writeHead(200, { 'content-length': '100' }).write('{', () => given.abort(new Error('enough')))
    })
    await assert.rejects(api.describe({ signal: given.signal }), /enough/)
    await closed(sockets[0])
  })

  it('never sends a change twice', async (t) => {
    const { api, calls, sockets } = await firecrackerWithApi(t, (call) =>
      call.path === '/actions' ? void call.socket.destroy() : done(call),
    )
    await assert.rejects(api.start(), hasNoAnswer('broken', true, /PUT \/actions: the connection ended before one/))
    await api.pause() // a connection that has served
    await assert.rejects(api.start(), hasNoAnswer('broken', true, /PUT \/actions: the connection ended before one/))
    assert.deepEqual(
      calls.map((call) => call.path),
      ['/actions', '/vm', '/actions'],
    )
    assert.equal(sockets.length, 2)
  })

  it('asks once more when the connection it kept ends without a word, and only then', async (t) => {
    let drops = 1
    const { api, calls, sockets } = await firecrackerWithApi(t, (call) => {
      if (call.path === '/' && drops-- > 0) call.socket.destroy()
      else if (call.path === '/') say(call, INFO)
      else done(call)
    })
    await assert.rejects(api.describe(), hasNoAnswer('broken', false, /GET \/: the connection ended/)) // a new one
    assert.equal(calls.length, 1)
    await api.pause()
    drops = 1
    assert.deepEqual(await api.describe(), INFO)
    assert.equal(calls.length, 4)
    assert.equal(sockets.length, 3)
    drops = 2
    await assert.rejects(api.describe(), hasNoAnswer('broken', false, /ended/))
    assert.equal(calls.length, 6)
  })

  it('knows that nothing came about when the call was not even taken in', async (t) => {
    const socketPath = path.join(await temporaryFolder(t), 'api.sock')
    // As Firecracker does with the eleventh connection; whether the client still reads that is a matter of moments.
    const server = createSocketServer((socket) => {
      socket.on('error', () => undefined)
      socket.write('HTTP/1.1 503\r\nContent-Length: 40\r\n\r\n{ "error": "Too many open connections" }', () =>
        socket.destroy(),
      )
    })
    server.listen(socketPath)
    await once(server, 'listening')
    t.after(() => void server.close())
    await using api = new FirecrackerApi(socketPath)
    await assert.rejects(api.pause(), (error) => {
      if (error instanceof FirecrackerFault) return /Too many open connections/.test(error.message)
      return hasNoAnswer('broken', /EPIPE/.test((error as Error).message) === false, /PATCH \/vm/)(error)
    })
  })

  it('tells an answer that broke off from one that never came', async (t) => {
    const cut = (status: number) => (call: Call) =>
      void call.reply
        .writeHead(status, { 'content-length': '100' })
        .write('{"fault_message": "Vsock', () => call.socket.destroy())
    for (const [status, mayHaveTakenEffect] of [
      [200, true],
      [400, false],
    ] as const) {
      const { api, calls } = await firecrackerWithApi(t, cut(status))
      const message = new RegExp(`in the middle of one with status ${status}`)
      await assert.rejects(api.putEntropy(), hasNoAnswer('broken', mayHaveTakenEffect, message))
      await assert.rejects(api.describe(), hasNoAnswer('broken', false, message))
      assert.equal(calls.length, 2)
    }
  })

  it('does not ask once more when an answer had begun', async (t) => {
    const { api, calls } = await firecrackerWithApi(t, (call) => {
      if (call.path === '/vm') done(call)
      else if (call.path === '/') call.socket.write('no HTTP')
      else call.reply.writeHead(200, { 'content-length': '9' }).write('{', () => call.socket.destroy())
    })
    await api.pause()
    await assert.rejects(api.version(), hasNoAnswer('broken', false, /in the middle of one with status 200/))
    await api.pause()
    await assert.rejects(api.describe(), hasNoAnswer('unintelligible', false, /it is no HTTP/))
    assert.deepEqual(
      calls.map((call) => call.path),
      ['/vm', '/version', '/vm', '/'],
    )
  })

  it('believes nothing but an answer of Firecracker', async (t) => {
    const raw = (text: string) => (call: Call) => void call.socket.write(text)
    const cases: [string, (call: Call) => void, RegExp][] = [
      ['no HTTP', raw('OK 1073741824\n'), /it is no HTTP/],
      ['headers without end', raw(`HTTP/1.1 200 \r\nX: ${'x'.repeat(20_000)}`), /it is no HTTP/],
      ['no JSON', ({ reply }) => void reply.end('{"id":'), /no JSON/],
      ['escapes', ({ reply }) => void reply.end('\u001b[31m'), /token '\ufffd'/],
      ['nothing', ({ reply }) => void reply.end(), /no JSON/],
      ['nothing at all', done, /status 204, not 200/],
      ['another shape', (call) => say(call, { ...INFO, state: 'Dreaming' }), /another shape \(.* at state\)/],
      [
        'JSON too deep',
        ({ reply }) => void reply.end('['.repeat(30_000) + ']'.repeat(30_000)),
        /no JSON|another shape/,
      ],
      ['a redirect', ({ reply }) => void reply.writeHead(302, { location: '/version' }).end(), /status 302, not 200/],
    ]
    for (const [what, answer, message] of cases) {
      const { api } = await firecrackerWithApi(t, answer)
      await assert.rejects(api.describe(), hasNoAnswer('unintelligible', false, message), what)
    }
    const { api } = await firecrackerWithApi(t, (call) => say(call, {}))
    await assert.rejects(api.pause(), hasNoAnswer('unintelligible', true, /status 200, not 204/))
  })

  it('reads no more than Firecracker would ever send, and more only of what is large', async (t) => {
    const { api, sockets } = await firecrackerWithApi(t, (call) => {
      if (call.path === '/') return say(call, { ...INFO, id: 'x'.repeat(64 * 1024) })
      if (call.path === '/mmds') return say(call, { a: 'x'.repeat(1_000_000) })
      const timer = setInterval(() => call.reply.write('x'.repeat(64 * 1024)), 0) // without end
      call.socket.on('close', () => clearInterval(timer))
    })
    await assert.rejects(api.describe(), hasNoAnswer('unintelligible', false, /more than 65536 bytes/))
    assert.equal(String((await api.getMmds())['a']).length, 1_000_000)
    await assert.rejects(api.vmConfig(), hasNoAnswer('unintelligible', false, /more than 1048576 bytes/))
    await assert.rejects(api.pause(), hasNoAnswer('unintelligible', true, /more than 65536 bytes/))
    await closed(sockets.at(-1))
  })

  it('says that nobody is there, and is served when somebody is', async (t) => {
    const folder = await temporaryFolder(t)
    const api = new FirecrackerApi(path.join(folder, 'api.sock'))
    t.after(() => api.close())
    await assert.rejects(api.pause(), (error) => {
      hasNoAnswer('unreachable', false, /PATCH \/vm: there is nothing at its socket .*api\.sock/)(error)
      return isSystemError((error as BandSoxError).cause, 'ENOENT')
    })
    await firecracker(t, done, folder)
    await api.pause()
  })

  it('tells a socket that its process left behind', async (t) => {
    const { socketPath } = await deadSocket(t)
    await using api = new FirecrackerApi(socketPath)
    await assert.rejects(api.version(), hasNoAnswer('unreachable', false, /nobody listens at its socket/))
  })

  it('reaches a socket whose path is longer than a socket address', async (t) => {
    const root = await temporaryFolder(t)
    const folder = path.join(root, 'd'.repeat(100), 'e'.repeat(100))
    await mkdir(folder, { recursive: true })
    await symlink(folder, path.join(root, 'short')) // for the server, which can only listen at a short path
    await firecracker(t, done, path.join(root, 'short'))
    const before = await openDescriptors()
    for (let round = 0; round < 5; round++) {
      await using api = new FirecrackerApi(path.join(folder, 'api.sock'))
      await api.pause()
      await api.resume()
    }
    const missing = new FirecrackerApi(path.join(folder, 'no.sock'))
    await assert.rejects(
      missing.pause(),
      hasNoAnswer('unreachable', false, /there is nothing at its socket .*e\/no\.sock/),
    )
    while ((await openDescriptors()).length > before.length) await new Promise((resolve) => setImmediate(resolve))
  })

  it('ends what is under way and what waits when it is closed, and leaves nothing', async (t) => {
    const arrivals = new EventEmitter()
    const { api, calls, sockets } = await firecrackerWithApi(t, () => void arrivals.emit('call'))
    const asked = once(arrivals, 'call')
    const ends = Promise.all([
      assert.rejects(api.pause(), hasCode('cancelled', /was closed/)),
      assert.rejects(api.resume(), hasCode('cancelled', /was closed/)),
    ])
    await asked
    await api.close()
    await ends
    await api.close()
    await assert.rejects(api.version(), hasCode('cancelled', /was closed/))
    await closed(sockets[0])
    assert.equal(calls.length, 1)
    assert.equal(sockets.length, 1)
  })
})

/** A socket file that nobody listens at: a server moves its own away before it ends, as it would else be removed. */
async function deadSocket(t: TestScope) {
  const { socketPath, stop } = await firecracker(t, done)
  const left = `${socketPath}.left`
  await rename(socketPath, left)
  await stop()
  return { socketPath: left }
}
