import assert from 'node:assert/strict'
import { once } from 'node:events'
import { createServer as createHttpServer } from 'node:http'
import { type AddressInfo, connect, createServer } from 'node:net'
import { pipeline, Readable } from 'node:stream'
import { describe, it } from 'node:test'
import { BandSoxError } from '@bandsox/sdk'
import { hasCode } from '../../../testing/errors.js'
import { type TestScope, temporaryFolder } from '../../../testing/temporary-folder.js'
import { DEFAULT_HTTP_LIMITS, type HttpOptions, type HttpRequest, openHttpClient } from './http.js'
import { discard, readBody } from './reply.js'
import { makeCertificate } from './testing/certificate.js'
import { disconnected, serve } from './testing/server.js'

const never = new AbortController().signal

async function open(t: TestScope, options: Partial<HttpOptions> = {}) {
  const debug: string[] = []
  const client = await openHttpClient({
    host: '127.0.0.1',
    verifyTls: true,
    ca: undefined,
    allowDowngrade: false,
    allowLoopback: true,
    proxy: {},
    debug: (message) => debug.push(message),
    ...options,
    limits: { ...DEFAULT_HTTP_LIMITS, backoffMs: 1, ...options.limits },
  })
  t.after(() => client.close())
  return { client, debug }
}

const get = (url: string, over: Partial<HttpRequest> = {}): HttpRequest => ({
  method: 'GET',
  url: new URL(url),
  headers: {},
  signal: never,
  ...over,
})

describe('a request', () => {
  it('is tried three times after 429 and 5xx, and the last answer is given', async (t) => {
    const server = await serve(t, (_, response) => response.writeHead(server.asked.length === 1 ? 429 : 503).end('no'))
    const { client, debug } = await open(t)
    const reply = await client.send(get(`http://${server.host}/`))
    assert.equal(reply.status, 503)
    assert.equal((await readBody(reply, 10, never)).toString(), 'no')
    assert.equal(server.asked.length, 3)
    assert.equal(debug.length, 2)
    assert.equal(server.sockets.size, 1) // refusals are read to their end
  })

  it('is not tried again after other answers', async (t) => {
    const server = await serve(t, (_, response) => response.writeHead(404).end())
    const { client } = await open(t)
    assert.equal((await client.send(get(`http://${server.host}/`))).status, 404)
    assert.equal(server.asked.length, 1)
  })

  it('waits as long as the server asks', async (t) => {
    const times: number[] = []
    const server = await serve(t, (_, response) => {
      times.push(performance.now())
      response.writeHead(times.length === 1 ? 429 : 200, { 'retry-after': '1' }).end()
    })
    const { client } = await open(t)
    assert.equal((await client.send(get(`http://${server.host}/`))).status, 200)
    assert.ok((times[1] ?? 0) - (times[0] ?? 0) >= 990)
  })

  it('is not kept waiting for minutes', async (t) => {
    const dates = ['3600', new Date(Date.now() + 3_600_000).toUTCString()]
    const server = await serve(t, (_, response) => response.writeHead(429, { 'retry-after': dates.pop() }).end())
    const { client } = await open(t)
    for (const asked of [1, 2]) {
      assert.equal((await client.send(get(`http://${server.host}/`))).status, 429)
      assert.equal(server.asked.length, asked)
    }
  })

  it('is tried again when the connection is lost', async (t) => {
    const server = await serve(t, (_, response) => {
      if (server.asked.length < 3) response.socket?.resetAndDestroy()
      else response.end('third')
    })
    const { client } = await open(t)
    const reply = await client.send(get(`http://${server.host}/`))
    assert.equal((await readBody(reply, 10, never)).toString(), 'third')
  })

  it('that is lost three times fails with the host and the cause', async (t) => {
    const server = await serve(t, (_, response) => response.socket?.resetAndDestroy())
    const { client } = await open(t)
    const sending = client.send(get(`http://${server.host}/`))
    await assert.rejects(
      sending,
      hasCode('registry-unreachable', new RegExp(`cannot reach ${server.host}: .*(RESET|closed)`)),
    )
    assert.equal(server.asked.length, 3)
  })

  it('to a closed port, or a name that does not exist, fails at once', async (t) => {
    const { client, debug } = await open(t)
    const server = createServer().listen(0, '127.0.0.1')
    await once(server, 'listening')
    const { port } = server.address() as AddressInfo
    await once(server.close(), 'close')
    for (const [url, why] of [
      [`http://127.0.0.1:${port}/`, /cannot reach 127\.0\.0\.1:\d+: .*ECONNREFUSED/],
      [`http://localhost:${port}/`, /cannot reach localhost:\d+: .*ECONNREFUSED/],
    ] as const)
      await assert.rejects(client.send(get(url)), hasCode('registry-unreachable', why))
    assert.deepEqual(debug, [])
  })

  it('to a server that does not answer ends after its time', async (t) => {
    const server = await serve(t, () => undefined)
    const { client } = await open(t, { limits: { ...DEFAULT_HTTP_LIMITS, headersMs: 100 } })
    await assert.rejects(
      client.send(get(`http://${server.host}/`)),
      hasCode('registry-failed', /sends no reply: .*Timeout/),
    )
    await disconnected(server)
  })

  it('to a server that does not finish the TLS handshake ends after its time', async (t) => {
    const server = createServer((socket) => socket.on('error', () => undefined)).listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.after(() => void server.close())
    const { client } = await open(t, { limits: { ...DEFAULT_HTTP_LIMITS, connectMs: 100 } })
    const { port } = server.address() as AddressInfo
    await assert.rejects(client.send(get(`https://127.0.0.1:${port}/`)), hasCode('registry-unreachable', /Timeout/))
  })

  it('answered with headers without end, or with what is not HTTP, fails', async (t) => {
    const answers = [`HTTP/1.1 200 OK\r\n${`x: ${'y'.repeat(1000)}\r\n`.repeat(100)}`, 'SSH-2.0-OpenSSH\r\n\r\n']
    const server = createServer((socket) => {
      socket.on('error', () => undefined)
      socket.once('data', () => socket.write(answers.shift() ?? ''))
    }).listen(0, '127.0.0.1')
    await once(server, 'listening')
    t.after(() => void server.close())
    const { client } = await open(t)
    const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/`
    await assert.rejects(client.send(get(url)), hasCode('registry-failed', /Headers Overflow/))
    await assert.rejects(client.send(get(url)), hasCode('registry-failed', /sends no reply/))
  })

  it('ends with its signal and its reason: before, while it waits, between tries, and in the body', async (t) => {
    const reason = new Error('enough')
    let aborting = new AbortController()
    let onAsked = () => aborting.abort(reason)
    const server = await serve(t, ({ path }, response) => {
      if (path === '/busy') response.writeHead(503, { 'retry-after': '15' }).end()
      if (path === '/body') response.writeHead(200).write('piece')
      onAsked()
    })
    const { client } = await open(t)
    for (const path of ['/silent', '/busy']) {
      aborting = new AbortController()
      await assert.rejects(client.send(get(`http://${server.host}${path}`, { signal: aborting.signal })), reason)
      await assert.rejects(client.send(get(`http://${server.host}${path}`, { signal: aborting.signal })), reason)
    }
    assert.equal(server.asked.length, 2)
    onAsked = () => undefined
    aborting = new AbortController()
    const reply = await client.send(get(`http://${server.host}/body`, { signal: aborting.signal }))
    const reading = readBody(reply, 100, aborting.signal)
    aborting.abort(reason)
    await assert.rejects(reading, reason)
  })

  it('ends with its signal also while nobody accepts the connection', async (t) => {
    // The reserved address 192.0.2.1 answers nothing, or there is no route to it: both are no reason to wait.
    const { client } = await open(t)
    const aborting = new AbortController()
    const sending = client.send(get('https://192.0.2.1/', { signal: aborting.signal }))
    aborting.abort(new Error('enough'))
    await assert.rejects(sending, /enough/)
  })
})

describe('a redirect', () => {
  it('is followed with the header Authorization to the same origin, and without it to another', async (t) => {
    const target = await serve(t, (_, response) => response.end('here'))
    const server = await serve(t, ({ path }, response) =>
      response.writeHead(307, { location: path === '/a' ? '/b' : `http://${target.host}/c?signed=1` }).end(),
    )
    const { client } = await open(t)
    const headers = { authorization: 'Bearer secret', range: 'bytes=5-' }
    const reply = await client.sendFollowing(get(`http://${server.host}/a`, { headers }))
    assert.equal((await readBody(reply, 10, never)).toString(), 'here')
    assert.equal(reply.url.href, `http://${target.host}/c?signed=1`)
    assert.deepEqual(
      server.asked.map(({ path, headers: sent }) => [path, sent.authorization]),
      [
        ['/a', 'Bearer secret'],
        ['/b', 'Bearer secret'],
      ],
    )
    assert.equal(target.asked[0]?.headers.authorization, undefined)
    assert.equal(target.asked[0]?.headers.range, 'bytes=5-')
  })

  it('that never ends is followed five times', async (t) => {
    const server = await serve(t, (_, response) => response.writeHead(302, { location: '/again' }).end())
    const { client } = await open(t)
    const sending = client.sendFollowing(get(`http://${server.host}/`))
    await assert.rejects(sending, hasCode('registry-failed', /redirects more than 5 times/))
    assert.equal(server.asked.length, 6)
  })

  it('to nowhere is refused', async (t) => {
    const locations = ['', 'http://[', 'file:///etc/passwd']
    const server = await serve(t, ({ path }, response) =>
      response.writeHead(307, { location: locations[Number(path.slice(1))] }).end(),
    )
    const { client } = await open(t)
    for (const index of locations.keys())
      await assert.rejects(
        client.sendFollowing(get(`http://${server.host}/${index}`)),
        hasCode('registry-failed', /redirects/),
      )
  })

  it('from HTTPS to HTTP is followed only where that is allowed', async (t) => {
    const tls = await makeCertificate(await temporaryFolder(t))
    const plain = await serve(t, (_, response) => response.end('plain'))
    const server = await serve(
      t,
      (_, response) => response.writeHead(307, { location: `http://${plain.host}/` }).end(),
      tls,
    )
    const strict = await open(t, { ca: tls.file })
    const sending = strict.client.sendFollowing(get(`https://${server.host}/`))
    await assert.rejects(sending, hasCode('registry-failed', /from HTTPS to plain HTTP/))
    assert.equal(plain.asked.length, 0)
    const lax = await open(t, { ca: tls.file, allowDowngrade: true })
    await discard(await lax.client.sendFollowing(get(`https://${server.host}/`)))
    assert.equal(plain.asked.length, 1)
  })
})

describe('a host that is not public', () => {
  it('is not asked when that is not allowed, by address or by name', async (t) => {
    const server = await serve(t, (_, response) => response.end())
    const { client } = await open(t, { allowLoopback: false })
    const [, port] = server.host.split(':')
    for (const host of ['127.0.0.1', 'localhost', '0x7f.1', '0.0.0.0', '[::1]', '[::ffff:127.0.0.1]', '10.0.0.1'])
      await assert.rejects(
        client.send(get(`http://${host}:${port}/`)),
        hasCode('permission-denied', /must not be asked/),
      )
    for (const host of ['192.168.1.1', '172.16.0.1', '169.254.169.254', '100.64.0.1', '[fd00::1]', '[fe80::1]'])
      await assert.rejects(client.send(get(`http://${host}/`)), hasCode('permission-denied', /must not be asked/))
    assert.equal(server.asked.length, 0)
  })
})

describe('TLS', () => {
  it('is verified, with certificates besides the usual ones, or not at all', async (t) => {
    const tls = await makeCertificate(await temporaryFolder(t))
    const server = await serve(t, (_, response) => response.end(), tls)
    const url = `https://${server.host}/`
    const usual = await open(t)
    await assert.rejects(usual.client.send(get(url)), (error) => {
      hasCode('registry-unreachable', /self-signed certificate/)(error)
      assert.match(String((error as BandSoxError).hint), /"ca" or "insecure" of 127\.0\.0\.1/)
      return true
    })
    assert.equal(server.asked.length, 0)
    for (const options of [{ ca: tls.file }, { verifyTls: false }]) {
      const { client } = await open(t, options)
      assert.equal((await client.send(get(url))).status, 200)
    }
  })

  it('that is not verified for the server itself is verified for where it redirects', async (t) => {
    const tls = await makeCertificate(await temporaryFolder(t))
    const other = await serve(t, (_, response) => response.end(), tls)
    const elsewhere = `https://${other.host.replace('127.0.0.1', 'localhost')}/`
    const server = await serve(t, (_, response) => response.writeHead(307, { location: elsewhere }).end(), tls)
    const { client } = await open(t, { host: server.host, verifyTls: false })
    await assert.rejects(client.sendFollowing(get(`https://${server.host}/`)), (error) => {
      hasCode('registry-unreachable', /cannot reach localhost:\d+: self-signed certificate/)(error)
      assert.match(String((error as BandSoxError).hint), /set "ca" of 127\.0\.0\.1:\d+ in/)
      return true
    })
    assert.deepEqual([server.asked.length, other.asked.length], [1, 0])
    const trusting = await open(t, { host: server.host, verifyTls: false, ca: tls.file })
    assert.equal((await trusting.client.sendFollowing(get(`https://${server.host}/`))).status, 200)
  })

  it('with certificates that are not there is refused at once', async (t) => {
    await assert.rejects(
      open(t, { ca: '/nowhere/ca.pem' }),
      hasCode('bad-request', /\/nowhere\/ca\.pem: it is not there/),
    )
  })
})

describe('a proxy', () => {
  /** Connects to the test's server whatever host is asked for, since names under example do not resolve. */
  async function serveProxy(t: TestScope, target: string, status = 200) {
    const asked: string[] = []
    const proxy = createHttpServer((request, response) => {
      asked.push(`${request.method} ${request.url}`)
      response.end('from the proxy')
    })
    proxy.on('connect', (request, socket) => {
      asked.push(`CONNECT ${request.url} ${request.headers['proxy-authorization'] ?? ''}`.trim())
      socket.on('error', () => undefined)
      if (status !== 200) return void socket.end(`HTTP/1.1 ${status} No\r\n\r\n`)
      const [host = '', port] = target.split(':')
      const upstream = connect(Number(port), host, () => {
        socket.write('HTTP/1.1 200 OK\r\n\r\n')
        upstream.pipe(socket).pipe(upstream)
      })
      upstream.on('error', () => socket.destroy())
    })
    await once(proxy.listen(0, '127.0.0.1'), 'listening')
    t.after(() => {
      proxy.close()
      proxy.closeAllConnections()
    })
    return { asked, host: `127.0.0.1:${(proxy.address() as AddressInfo).port}` }
  }

  it('tunnels HTTPS, and logs in with what stands in its address', async (t) => {
    const tls = await makeCertificate(await temporaryFolder(t))
    const server = await serve(t, (_, response) => response.end('from the server'), tls)
    const proxy = await serveProxy(t, server.host)
    const { client } = await open(t, {
      host: 'registry.example',
      verifyTls: false,
      proxy: { https: `http://me:secret@${proxy.host}` },
    })
    const reply = await client.send(get('https://registry.example/v2/'))
    assert.equal((await readBody(reply, 100, never)).toString(), 'from the server')
    assert.deepEqual(proxy.asked, [`CONNECT registry.example:443 Basic ${Buffer.from('me:secret').toString('base64')}`])
    assert.equal(server.asked[0]?.headers.host, 'registry.example')
    assert.equal(server.asked[0]?.headers['proxy-authorization'], undefined)
  })

  it('passes HTTP on', async (t) => {
    const proxy = await serveProxy(t, 'unused:1')
    const { client } = await open(t, { proxy: { http: proxy.host } })
    const reply = await client.send(get('http://registry.example/v2/'))
    assert.equal((await readBody(reply, 100, never)).toString(), 'from the proxy')
    assert.deepEqual(proxy.asked, ['GET http://registry.example/v2/'])
  })

  it('that refuses is a registry out of reach', async (t) => {
    const proxy = await serveProxy(t, 'unused:1', 407)
    const { client } = await open(t, { proxy: { https: proxy.host } })
    const sending = client.send(get('https://registry.example/v2/'))
    await assert.rejects(sending, hasCode('registry-unreachable', /cannot reach registry\.example: .*407/))
  })

  it('with an address that is none is refused', async (t) => {
    const { client } = await open(t, { proxy: { https: 'http://me:secret@[' } })
    await assert.rejects(client.send(get('https://registry.example/')), (error) => {
      hasCode('bad-request', /the address of the proxy is none/)(error)
      assert.doesNotMatch((error as Error).message, /secret/)
      return true
    })
  })
})

describe('a body', () => {
  it('is read up to its limit, and not beyond', { timeout: 10_000 }, async (t) => {
    const server = await serve(t, (_, response) => {
      const endless = function* () {
        for (;;) yield 'x'.repeat(1000)
      }
      pipeline(Readable.from(endless()), response, () => undefined) // it ends when the client has enough
    })
    const { client } = await open(t)
    const reply = await client.send(get(`http://${server.host}/`))
    assert.equal((await readBody(reply, 2500, never)).length, 2500)
    await disconnected(server)
    const second = await client.send(get(`http://${server.host}/`))
    const tooMuch = () => new BandSoxError('image-invalid', 'too much')
    await assert.rejects(readBody(second, 2500, never, tooMuch), hasCode('image-invalid', /too much/))
    await disconnected(server)
  })

  it('that nobody wants does not hold the next request up', { timeout: 10_000 }, async (t) => {
    const server = await serve(t, (_, response) => void response.write('x'.repeat(1_000_000)))
    const { client } = await open(t)
    await discard(await client.send(get(`http://${server.host}/`)))
    await disconnected(server)
  })

  it('that breaks off, or falls silent, says after how many bytes', async (t) => {
    const server = await serve(t, ({ path }, response) => {
      response.writeHead(200, { 'content-length': '10' })
      response.write('12345', () => {
        if (path === '/breaks') response.socket?.destroy()
      })
    })
    const { client } = await open(t, { limits: { ...DEFAULT_HTTP_LIMITS, bodyIdleMs: 100 } })
    for (const path of ['/breaks', '/silent']) {
      const reply = await client.send(get(`http://${server.host}${path}`))
      await assert.rejects(readBody(reply, 100, never), hasCode('registry-failed', /broke off after 5 bytes: /))
    }
  })
})

it('a client that is closed breaks off what is under way, and leaves no connection', { timeout: 10_000 }, async (t) => {
  const server = await serve(t, ({ path }, response) => {
    if (path === '/body') response.writeHead(200).write('piece')
    else void client.close()
  })
  const { client } = await open(t)
  const reply = await client.send(get(`http://${server.host}/body`))
  await assert.rejects(client.send(get(`http://${server.host}/silent`, { tries: 1 })), hasCode('registry-unreachable'))
  await assert.rejects(readBody(reply, 100, never), hasCode('registry-failed'))
  await disconnected(server)
})
