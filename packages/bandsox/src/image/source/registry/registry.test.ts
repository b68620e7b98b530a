import assert from 'node:assert/strict'
import { EventEmitter, once } from 'node:events'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { buffer } from 'node:stream/consumers'
import { describe, it } from 'node:test'
import { hasCode } from '../../../testing/errors.js'
import { type TestScope, temporaryFolder } from '../../../testing/temporary-folder.js'
import { BlobStore } from '../../blob-store.js'
import { parseRegistryReference } from '../reference.js'
import { storeCredentials } from './auth-file.js'
import { checkCredentials } from './check-credentials.js'
import { openRegistry, type RegistryOptions } from './registry.js'
import { registryConfigSchema } from './registry-config.js'
import { makeCertificate } from './testing/certificate.js'
import {
  INDEX_TYPE,
  index,
  layer,
  layerDescriptor,
  MANIFEST_TYPE,
  manifest,
  manifestDescriptor,
  serveRegistry,
} from './testing/registry.js'
import { digestOf, disconnected, json, serve, type TestServer } from './testing/server.js'

interface Opening extends Partial<Omit<RegistryOptions, 'config'>> {
  config?: unknown
  text?: string
}

async function open(t: TestScope, server: TestServer, { text = 'a/b:1', config = {}, ...options }: Opening = {}) {
  const debug: string[] = []
  const source = await openRegistry({
    reference: parseRegistryReference(`${server.host}/${text}`),
    credentialSources: { files: [], environment: {} },
    debug: (message) => debug.push(message),
    ...options,
    config: registryConfigSchema.parse(config),
    limits: { backoffMs: 1, ...options.limits },
  })
  t.after(() => source.close())
  return { source, debug }
}

describe('a registry', () => {
  it('delivers what a tag means, its manifests and its layers', async (t) => {
    const server = await serveRegistry(t)
    const { source, debug } = await open(t, server)
    const root = await source.root()
    assert.deepEqual(root, { bytes: Buffer.from(index), mediaType: INDEX_TYPE, digest: digestOf(index) })
    const document = await source.manifest(manifestDescriptor)
    assert.deepEqual(document, {
      bytes: Buffer.from(manifest),
      mediaType: MANIFEST_TYPE,
      digest: manifestDescriptor.digest,
    })
    const { stream, startsAt } = await source.openBlob(layerDescriptor, 0)
    assert.equal(startsAt, 0)
    assert.deepEqual(await buffer(stream), layer)
    assert.match(
      server.asked[0]?.headers.accept ?? '',
      /oci\.image\.index.*oci\.image\.manifest.*manifest\.list.*manifest\.v2/,
    )
    assert.equal(debug.length, 1)
    assert.match(debug[0] ?? '', /trying without TLS/)
  })

  it('is asked for a digest where the reference has one, whatever its tag', async (t) => {
    const server = await serveRegistry(t)
    const { source } = await open(t, server, { text: `a/b:other@${digestOf(index)}` })
    assert.equal((await source.root()).digest, digestOf(index))
    assert.equal(await source.digest(), digestOf(index))
    assert.deepEqual(
      server.asked.map(({ path }) => path),
      [`/v2/a/b/manifests/${digestOf(index)}`],
    )
  })

  it('tells the digest of a tag by HEAD, and by GET where it does not', async (t) => {
    const server = await serveRegistry(t)
    const { source } = await open(t, server)
    assert.equal(await source.digest(), digestOf(index))
    assert.deepEqual(
      server.asked.map(({ method }) => method),
      ['HEAD'],
    )
    const old = await serveRegistry(t, ({ method }, response) => method === 'HEAD' && !!response.writeHead(405).end())
    assert.equal(await (await open(t, old)).source.digest(), digestOf(index))
    const mute = await serveRegistry(t, ({ method }, response) => method === 'HEAD' && !!response.writeHead(200).end())
    assert.equal(await (await open(t, mute)).source.digest(), digestOf(index))
    const none = await open(t, server, { text: 'a/b:none' })
    await assert.rejects(none.source.digest(), hasCode('image-not-found', /what .*a\/b:none means/))
  })

  it('that does not have the image says so with repository and tag', async (t) => {
    const server = await serveRegistry(t)
    const { source } = await open(t, server, { text: 'a/b:none' })
    const why = /cannot get the manifest of 127\.0\.0\.1:\d+\/a\/b:none: .* 404 Not Found; "manifest unknown"/
    await assert.rejects(source.root(), hasCode('image-not-found', why))
  })

  it('whose message is hostile is quoted without what moves the cursor, and in short', async (t) => {
    const message = `\u001b[2J\u202eevil\r\n${'x'.repeat(1000)}`
    const server = await serveRegistry(t, (_, response) => {
      json(response, 400, { errors: [{ code: 'X', message }] })
      return true
    })
    const { source } = await open(t, server)
    await assert.rejects(source.root(), (error) => {
      hasCode('registry-failed', /answers 400 Bad Request; "\[2J evilx?/)(error)
      const text = (error as Error).message
      assert.doesNotMatch(text, /\p{Cc}|\p{Cf}/u)
      assert.ok(text.length < 400)
      return true
    })
  })

  it('that sends another document than was asked for is not believed', async (t) => {
    const server = await serveRegistry(t, ({ path }, response) => {
      const isAsked = path.includes('manifests/sha256:')
      if (isAsked) response.writeHead(200, { 'content-type': MANIFEST_TYPE }).end(manifest.replace('2', '2 '))
      return isAsked
    })
    const { source } = await open(t, server)
    await assert.rejects(
      source.manifest(manifestDescriptor),
      hasCode('digest-mismatch', /what came has the digest sha256:/),
    )
    const pinned = await open(t, server, { text: `a/b@${digestOf(index)}` })
    await assert.rejects(pinned.source.root(), hasCode('digest-mismatch'))
  })

  for (const [title, type, body, why] of [
    [
      'of schema 1',
      'application/vnd.docker.distribution.manifest.v1+prettyjws',
      '{"schemaVersion":1}',
      /of the first schema/,
    ],
    ['of schema 1 in disguise', 'application/json', '{"schemaVersion":1}', /of the first schema/],
    ['that is no image', 'text/html', '{"schemaVersion":2}', /no manifest of an image, but "text\/html"/],
    ['that is no JSON', MANIFEST_TYPE, '<html>', /it is no JSON/],
    ['that is no object', MANIFEST_TYPE, '[]', /it is no manifest/],
    ['that is too large', MANIFEST_TYPE, `"${'x'.repeat(4 * 1024 * 1024)}"`, /more than 4194304 bytes/],
  ] as const)
    it(`with a document ${title} is refused`, async (t) => {
      const server = await serveRegistry(
        t,
        (_, response) => !!response.writeHead(200, { 'content-type': type }).end(body),
      )
      const { source } = await open(t, server)
      await assert.rejects(source.root(), hasCode('image-invalid', why))
    })

  it('that says nothing of the kind of a document is believed the document', async (t) => {
    const server = await serveRegistry(t, (_, response) => !!response.writeHead(200).end(manifest))
    assert.equal((await (await open(t, server)).source.root()).mediaType, MANIFEST_TYPE)
  })
})

describe('a layer', () => {
  const ranged = (respond: (start: number) => [number, Record<string, string>, Buffer]) => (t: TestScope) =>
    serveRegistry(t, ({ path, headers }, response) => {
      const start = /^bytes=(\d+)-$/.exec(headers.range ?? '')?.[1]
      if (!path.includes('/blobs/') || start === undefined) return false
      const [status, replyHeaders, body] = respond(Number(start))
      response.writeHead(status, replyHeaders).end(body)
      return true
    })
  const range = (start: number) => ({ 'content-range': `bytes ${start}-999/1000` })

  for (const [title, serving, startsAt, asked] of [
    ['goes on where it was left', ranged((start) => [206, range(start), layer.subarray(start)]), 400, 1],
    ['begins anew where the server knows no ranges', ranged(() => [200, {}, layer]), 0, 1],
    ['begins anew where the server refuses the range', ranged(() => [416, {}, Buffer.alloc(0)]), 0, 2],
    ['begins anew where the server sends another part', ranged(() => [206, range(7), layer.subarray(7)]), 0, 2],
    ['begins anew where the server does not say which part', ranged(() => [206, {}, layer.subarray(400)]), 0, 2],
  ] as const)
    it(title, async (t) => {
      const server = await serving(t)
      const { source } = await open(t, server)
      const blob = await source.openBlob(layerDescriptor, 400)
      assert.equal(blob.startsAt, startsAt)
      assert.deepEqual(await buffer(blob.stream), layer.subarray(startsAt))
      assert.equal(server.asked.length, asked)
    })

  it('comes from where the registry sends, without what it was logged in with', async (t) => {
    const storage = await serve(t, (_, response) => response.end(layer))
    const server = await serveRegistry(t, ({ path, headers }, response) => {
      if (headers.authorization === undefined) response.writeHead(401, { 'www-authenticate': 'Basic realm=x' }).end()
      else if (path.includes('/blobs/')) response.writeHead(307, { location: `http://${storage.host}/x?s=1` }).end()
      else return false
      return true
    })
    const { source } = await open(t, server, { credentials: { username: 'me', password: 'secret' } })
    await source.root()
    assert.deepEqual(await buffer((await source.openBlob(layerDescriptor, 0)).stream), layer)
    assert.equal(server.asked.at(-1)?.headers.authorization, `Basic ${Buffer.from('me:secret').toString('base64')}`)
    assert.equal(storage.asked[0]?.headers.authorization, undefined)
  })

  it('whose storage refuses is not a registry to log in to', async (t) => {
    const storage = await serve(t, (_, response) =>
      response.writeHead(401, { 'www-authenticate': 'Basic realm=x' }).end(),
    )
    const server = await serveRegistry(
      t,
      (_, response) => !!response.writeHead(307, { location: `http://${storage.host}/` }).end(),
    )
    const { source } = await open(t, server, { credentials: { username: 'me', password: 'secret' } })
    await assert.rejects(
      source.openBlob(layerDescriptor, 0),
      hasCode('registry-unauthorized', new RegExp(storage.host)),
    )
    assert.equal(storage.asked.length, 1)
  })

  for (const [title, headers, body, ending, code, why] of [
    [
      'that breaks off',
      { 'content-length': '1000' },
      layer.subarray(0, 300),
      'destroy',
      'registry-failed',
      /broke off after 300 bytes/,
    ],
    [
      'that falls silent',
      { 'content-length': '1000' },
      layer.subarray(0, 300),
      'none',
      'registry-failed',
      /after 300 bytes: .*Timeout/,
    ],
    ['that is too short', {}, layer.subarray(0, 300), 'end', 'registry-failed', /sent 300 of 1000 bytes/],
    ['that is too long', {}, Buffer.concat([layer, layer]), 'none', 'digest-mismatch', /over 1000 bytes came/],
  ] as const)
    it(`${title} fails while it is read`, { timeout: 10_000 }, async (t) => {
      const server = await serveRegistry(t, (_, response) => {
        response.writeHead(200, headers)
        if (ending === 'end') response.end(body)
        else
          response.write(body, () => {
            if (ending === 'destroy') response.socket?.destroy()
          })
        return true
      })
      const { source } = await open(t, server, { limits: { bodyIdleMs: 100 } })
      const { stream } = await source.openBlob(layerDescriptor, 0)
      const read: Buffer[] = []
      await assert.rejects(
        async () => {
          for await (const chunk of stream) read.push(chunk as Buffer)
        },
        hasCode(code, why),
      )
      // What is still on its way to the reader may be lost with the error, but nothing wrong comes before it.
      assert.deepEqual(Buffer.concat(read), layer.subarray(0, Buffer.concat(read).length))
      if (ending !== 'end') await disconnected(server)
    })

  it('that nobody reads on leaves no connection', { timeout: 10_000 }, async (t) => {
    const server = await serveRegistry(t, (_, response) => !!response.writeHead(200).write(layer.subarray(0, 300)))
    const { source } = await open(t, server)
    const { stream } = await source.openBlob(layerDescriptor, 0)
    for await (const _ of stream) break
    await disconnected(server)
  })

  it('ends with the signal it was opened with, and with its source', { timeout: 10_000 }, async (t) => {
    const server = await serveRegistry(t, (_, response) => !!response.writeHead(200).write(layer.subarray(0, 300)))
    const { source } = await open(t, server)
    const aborting = new AbortController()
    const first = await source.openBlob(layerDescriptor, 0, aborting.signal)
    const second = await source.openBlob(layerDescriptor, 0)
    const enough = new Error('enough')
    aborting.abort(enough)
    await assert.rejects(buffer(first.stream), enough)
    const reading = assert.rejects(buffer(second.stream), hasCode('cancelled'))
    await source.close()
    await reading
    await disconnected(server)
    await assert.rejects(source.root(), hasCode('cancelled', /was closed/))
  })
})

describe('a registry that wants a token', () => {
  /** Tokens are T1, T2, …; the registry takes those in `valid`. */
  async function serveWithTokens(t: TestScope, over: { realm?: string; issue?: (count: number) => unknown } = {}) {
    const valid = new Set<string>()
    const tokens: TestServer = await serve(t, (_, response) => {
      const count = tokens.asked.length
      const { issue = (number) => ({ token: `T${number}` }) } = over
      const reply = issue(count)
      if (typeof reply === 'number') return json(response, reply, { details: 'incorrect username or password' })
      valid.add(`Bearer T${count}`)
      json(response, 200, reply)
    })
    const realm = over.realm ?? `http://${tokens.host}/token?x=1`
    const server = await serveRegistry(t, ({ headers }, response) => {
      if (valid.has(headers.authorization ?? '')) return false
      const challenge = `Bearer realm="${realm}",service="registry.example",scope="repository:a/b:pull"`
      json(
        response,
        401,
        { errors: [{ code: 'UNAUTHORIZED', message: 'authentication required' }] },
        { 'www-authenticate': challenge },
      )
      return true
    })
    return { server, tokens, valid }
  }

  it('gets one for all requests, without credentials', async (t) => {
    const { server, tokens } = await serveWithTokens(t)
    const { source } = await open(t, server)
    await source.root()
    await Promise.all([source.manifest(manifestDescriptor), source.manifest(manifestDescriptor)])
    assert.deepEqual(
      tokens.asked.map(({ method, path, headers }) => [method, path, headers.authorization]),
      [['GET', '/token?x=1&service=registry.example&scope=repository%3Aa%2Fb%3Apull', undefined]],
    )
  })

  it('gets a new one when it has run out, and one for requests at the same time', async (t) => {
    const { server, tokens, valid } = await serveWithTokens(t)
    const { source } = await open(t, server)
    await source.root()
    valid.clear()
    await Promise.all([1, 2, 3].map(() => source.manifest(manifestDescriptor)))
    assert.equal(tokens.asked.length, 2)
  })

  it('is asked again once, and no more, when it refuses the token', async (t) => {
    const { server, tokens } = await serveWithTokens(t, { issue: () => ({ access_token: 'wrong' }) })
    const { source } = await open(t, server)
    const why = /answers 401 Unauthorized; "authentication required"; asked without credentials: none were found/
    await assert.rejects(source.root(), hasCode('registry-unauthorized', why))
    assert.equal(tokens.asked.length, 1)
    assert.equal(server.asked.length, 2)
  })

  it('has the password go to the token server alone', async (t) => {
    const { server, tokens } = await serveWithTokens(t)
    const { source } = await open(t, server, { credentials: { username: 'me', password: 'secret' } })
    await source.root()
    assert.equal(tokens.asked[0]?.headers.authorization, `Basic ${Buffer.from('me:secret').toString('base64')}`)
    assert.deepEqual(
      server.asked.map(({ headers }) => headers.authorization),
      [undefined, 'Bearer T1'],
    )
  })

  it('exchanges an identity token for one, by POST', async (t) => {
    const { server, tokens } = await serveWithTokens(t)
    const file = path.join(await temporaryFolder(t), 'auth.json')
    await writeFile(file, JSON.stringify({ auths: { [server.host]: { identitytoken: 'I&D' } } }))
    const { source } = await open(t, server, { credentialSources: { files: [file], environment: {} } })
    await source.root()
    const { method, path: asked, body = '', headers } = tokens.asked[0] ?? {}
    assert.deepEqual([method, asked, headers?.authorization], ['POST', '/token?x=1', undefined])
    assert.deepEqual(Object.fromEntries(new URLSearchParams(body)), {
      grant_type: 'refresh_token',
      refresh_token: 'I&D',
      client_id: 'bandsox',
      service: 'registry.example',
      scope: 'repository:a/b:pull',
    })
  })

  it('whose token server refuses the password says as whom it was asked, and from where that is', async (t) => {
    const { server } = await serveWithTokens(t, { issue: () => 401 })
    const file = path.join(await temporaryFolder(t), 'auth.json')
    await storeCredentials(file, server.host, { username: 'me', password: 'secret' })
    const { source } = await open(t, server, { credentialSources: { files: [file], environment: {} } })
    await assert.rejects(source.root(), (error) => {
      const why =
        /no token from 127.*401 Unauthorized; "incorrect username or password"; asked as me, with the password from .*auth\.json/
      hasCode('registry-unauthorized', why)(error)
      assert.doesNotMatch((error as Error).message, /secret/)
      return true
    })
  })

  for (const [title, issue, why] of [
    ['nothing', () => ({}), /has no token/],
    ['a header of its own', () => ({ token: 'a\r\nx: y' }), /has no token/],
    ['too much', () => ({ token: 'x'.repeat(70_000) }), /more than 65536 bytes/],
    ['an error', () => 500, /500 Internal Server Error/],
    ['no such page', () => 404, /404 Not Found/],
  ] as const)
    it(`whose token server answers with ${title} fails`, async (t) => {
      const { server } = await serveWithTokens(t, { issue })
      const { source } = await open(t, server)
      await assert.rejects(source.root(), hasCode('registry-failed', why))
    })

  it('from nowhere fails', async (t) => {
    for (const realm of ['', '/token', 'file:///x']) {
      const { server } = await serveWithTokens(t, { realm })
      const { source } = await open(t, server)
      await assert.rejects(source.root(), hasCode('registry-failed', /without saying whom to ask/))
    }
  })

  it('over plain HTTP gets no password, unless it is configured as insecure', async (t) => {
    const tls = await makeCertificate(await temporaryFolder(t))
    const tokens = await serve(t, (_, response) => json(response, 200, { token: 'T' }))
    const challenge = { 'www-authenticate': `Bearer realm="http://${tokens.host}/"` }
    const server = await serveRegistry(
      t,
      ({ headers }, response) => {
        return headers.authorization === undefined && !!response.writeHead(401, challenge).end()
      },
      tls,
    )
    const credentials = { username: 'me', password: 'secret' }
    const config = (insecure: boolean) => ({ registries: { [server.host]: { insecure, ca: tls.file } } })
    const strict = await open(t, server, { credentials, config: config(false) })
    await assert.rejects(strict.source.root(), hasCode('registry-failed', /a token over plain HTTP/))
    assert.equal(tokens.asked.length, 0)
    const lax = await open(t, server, { credentials, config: config(true) })
    await lax.source.root()
    assert.equal(tokens.asked.length, 1)
  })

  it('from a server on another host is asked for with TLS verified, even by a registry that is insecure', async (t) => {
    const tls = await makeCertificate(await temporaryFolder(t))
    const tokens = await serve(t, (_, response) => json(response, 200, { token: 'T' }), tls)
    const realm = `https://${tokens.host.replace('127.0.0.1', 'localhost')}/`
    const server = await serveRegistry(
      t,
      ({ headers }, response) =>
        headers.authorization === undefined &&
        !!response.writeHead(401, { 'www-authenticate': `Bearer realm="${realm}"` }).end(),
      tls,
    )
    const credentials = { username: 'me', password: 'secret' }
    const { source } = await open(t, server, { credentials })
    await assert.rejects(source.root(), hasCode('registry-unreachable', /no token from localhost.*self-signed/))
    assert.equal(tokens.asked.length, 0)
    const trusting = await open(t, server, {
      credentials,
      config: { registries: { [server.host]: { insecure: true, ca: tls.file } } },
    })
    assert.equal((await trusting.source.root()).digest, digestOf(index))
  })

  it('does not let one caller’s signal end what another waits for', { timeout: 10_000 }, async (t) => {
    const asked = new EventEmitter()
    const isAsked = once(asked, 'token')
    const tokens = await serve(t, (_, response) => void asked.emit('token', response))
    const server = await serveRegistry(t, ({ headers }, response) => {
      const challenge = { 'www-authenticate': `Bearer realm="http://${tokens.host}/"` }
      return headers.authorization === undefined && !!response.writeHead(401, challenge).end()
    })
    const { source } = await open(t, server)
    const aborting = new AbortController()
    const first = source.root(aborting.signal)
    const [response] = await isAsked
    const second = source.root()
    aborting.abort(new Error('enough'))
    await assert.rejects(first, /enough/)
    json(response, 200, { token: 'T' })
    assert.equal((await second).digest, digestOf(index))
    assert.equal(tokens.asked.length, 1)
  })
})

describe('a registry that wants a password', () => {
  const basic = (t: TestScope) =>
    serveRegistry(t, ({ headers }, response) => {
      const isRight = headers.authorization === `Basic ${Buffer.from('me:secret').toString('base64')}`
      return !isRight && !!response.writeHead(401, { 'www-authenticate': 'Basic realm="x"' }).end()
    })

  it('gets it once it has asked, and from then on', async (t) => {
    const server = await basic(t)
    const { source } = await open(t, server, { credentials: { username: 'me', password: 'secret' } })
    await source.root()
    await source.root()
    assert.deepEqual(
      server.asked.map(({ headers }) => headers.authorization === undefined),
      [true, false, false],
    )
  })

  it('is asked whether credentials are good, before they are kept', async (t) => {
    const server = await serveRegistry(t, ({ path, headers }, response) => {
      const isRight = headers.authorization === `Basic ${Buffer.from('me:secret').toString('base64')}`
      const status = isRight && path === '/v2/' ? 200 : 401
      return !!response.writeHead(status, status === 401 ? { 'www-authenticate': 'Basic realm="x"' } : {}).end()
    })
    const check = (password: string) =>
      checkCredentials({
        registry: server.host,
        credentials: { username: 'me', password },
        config: registryConfigSchema.parse({}),
      })
    await check('secret')
    await assert.rejects(check('wrong'), hasCode('registry-unauthorized', /cannot log in to .*asked as me/))
  })

  it('is asked no more with a wrong one, or with none', async (t) => {
    const server = await basic(t)
    const wrong = await open(t, server, { credentials: { username: 'me', password: 'wrong' } })
    await assert.rejects(
      wrong.source.root(),
      hasCode('registry-unauthorized', /asked as me, with the password from what was given/),
    )
    await assert.rejects(wrong.source.root(), hasCode('registry-unauthorized'))
    assert.equal(server.asked.length, 3)
    const none = await open(t, server)
    await assert.rejects(none.source.root(), hasCode('registry-unauthorized', /without credentials/))
    assert.equal(server.asked.length, 4)
  })

  it('says which place of credentials was of no use', async (t) => {
    const file = path.join(await temporaryFolder(t), 'config.json')
    await writeFile(file, '{"credsStore":"desktop"}')
    const { source, debug } = await open(t, await basic(t), {
      credentialSources: { files: [file], environment: { PATH: path.dirname(file) } },
    })
    await assert.rejects(source.root(), hasCode('registry-unauthorized', /docker-credential-desktop is not installed/))
    assert.match(debug.join(), /docker-credential-desktop/)
  })
})

describe('mirrors', () => {
  async function withMirrors(t: TestScope, registry: TestServer, mirrors: string[], options: Opening = {}) {
    return open(t, registry, { ...options, config: { registries: { [registry.host]: { mirrors } } } })
  }
  const failing = (t: TestScope, status: number) => serve(t, (_, response) => response.writeHead(status).end())

  it('are asked first, below the path of their address, and the registry is not', async (t) => {
    const [mirror, registry] = [await serveRegistry(t), await serveRegistry(t)]
    const { source } = await withMirrors(t, registry, [`http://${mirror.host}/hub`])
    await source.root()
    await buffer((await source.openBlob(layerDescriptor, 0)).stream)
    assert.deepEqual(
      mirror.asked.map(({ path }) => path),
      ['/v2/hub/a/b/manifests/1', `/v2/hub/a/b/blobs/${layerDescriptor.digest}`],
    )
    assert.equal(registry.asked.length, 0)
  })

  it('that fail are passed over and told of; one that lacks something is asked again for the next', async (t) => {
    const gone = await serve(t, () => undefined)
    const [lacking, refusing, broken] = [await failing(t, 404), await failing(t, 401), await failing(t, 503)]
    const registry = await serveRegistry(t)
    const mirrors = [lacking, refusing, broken].map(({ host }) => `http://${host}`)
    const { source, debug } = await withMirrors(t, registry, [`https://${gone.host}`, ...mirrors])
    assert.equal((await source.root()).digest, digestOf(index))
    await source.manifest(manifestDescriptor)
    assert.deepEqual(
      [lacking, refusing, broken].map(({ asked }) => asked.length),
      [2, 1, 3],
    )
    for (const { host } of [gone, lacking, refusing, broken])
      assert.match(debug.join('\n'), new RegExp(`mirror ${host} .*`))
  })

  it('do not get the credentials that were given for the registry', async (t) => {
    const mirror = await serve(t, (_, response) =>
      response.writeHead(401, { 'www-authenticate': 'Basic realm=x' }).end(),
    )
    const { source } = await withMirrors(t, await serveRegistry(t), [`http://${mirror.host}`], {
      credentials: { username: 'me', password: 'secret' },
    })
    await source.root()
    assert.deepEqual(
      mirror.asked.map(({ headers }) => headers.authorization),
      [undefined],
    )
  })

  it('that lie about a digest are not believed', async (t) => {
    const mirror = await serve(t, (_, response) => response.writeHead(200, { 'content-type': MANIFEST_TYPE }).end('{}'))
    const { source, debug } = await withMirrors(t, await serveRegistry(t), [`http://${mirror.host}`])
    assert.equal((await source.manifest(manifestDescriptor)).digest, manifestDescriptor.digest)
    assert.match(debug.join(), /what came has the digest/)
  })

  it('that break off in a layer leave the rest of it to the next', async (t) => {
    const mirror = await serveRegistry(t, (_, response) => {
      response.writeHead(200, { 'content-length': '1000' })
      response.write(layer.subarray(0, 300), () => response.socket?.destroy())
      return true
    })
    const registry = await serveRegistry(t)
    const { source } = await withMirrors(t, registry, [`http://${mirror.host}`])
    const first = await source.openBlob(layerDescriptor, 0)
    await assert.rejects(buffer(first.stream), hasCode('registry-failed', new RegExp(mirror.host)))
    const second = await source.openBlob(layerDescriptor, 300)
    assert.deepEqual(await buffer(second.stream), layer)
    assert.equal(mirror.asked.length, 1)
  })

  for (const [title, body] of [
    ['whole', Buffer.alloc(1000)],
    ['in part', Buffer.alloc(300)],
  ] as const)
    it(`that send a layer wrong ${title} are passed over, and it comes from the next`, async (t) => {
      const mirrors = [0, 1].map(() =>
        serveRegistry(t, ({ path }, response) => {
          if (!path.includes('/blobs/')) return false
          response.writeHead(200, { 'content-length': '1000' })
          response.write(body, () => body.length < 1000 && response.socket?.destroy())
          return true
        }),
      )
      const [first, second, registry] = [await mirrors[0], await mirrors[1], await serveRegistry(t)]
      const { source, debug } = await withMirrors(
        t,
        registry,
        [first, second].map((mirror) => `http://${mirror?.host}`),
      )
      const store = new BlobStore(await temporaryFolder(t))
      await store.open()
      const incoming = store.fetch(layerDescriptor, source)
      const read: Buffer[] = []
      for await (const piece of incoming.read()) read.push(piece)
      assert.deepEqual(Buffer.concat(read), layer)
      await source.root()
      for (const mirror of [first, second]) {
        assert.equal(mirror?.asked.length, 1)
        assert.match(debug.join('\n'), new RegExp(`not asking the mirror ${mirror?.host} any more`))
      }
    })

  it('that send a layer wrong are no excuse for a registry that does as well', async (t) => {
    const wrong = () =>
      serveRegistry(t, ({ path }, response) => path.includes('/blobs/') && !!response.end(Buffer.alloc(1000)))
    const [mirror, registry] = [await wrong(), await wrong()]
    const { source } = await withMirrors(t, registry, [`http://${mirror.host}`])
    const store = new BlobStore(await temporaryFolder(t))
    await store.open()
    await assert.rejects(store.fetch(layerDescriptor, source).done, hasCode('digest-mismatch'))
    assert.deepEqual([mirror.asked.length, registry.asked.length], [1, 1])
  })

  it('are not a way around the registry’s own answer', async (t) => {
    const [mirror, registry] = [await failing(t, 404), await serveRegistry(t)]
    const { source } = await withMirrors(t, registry, [`http://${mirror.host}`], { text: 'a/b:none' })
    await assert.rejects(source.root(), hasCode('image-not-found', new RegExp(`${registry.host} answers 404`)))
  })

  it('end with the signal of the caller', async (t) => {
    const aborting = new AbortController()
    const mirror = await serve(t, () => aborting.abort(new Error('enough')))
    const registry = await serveRegistry(t)
    const { source } = await withMirrors(t, registry, [`http://${mirror.host}`])
    await assert.rejects(source.root(aborting.signal), /enough/)
    assert.equal(registry.asked.length, 0)
  })
})
