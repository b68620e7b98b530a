import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { pathToFileURL } from 'node:url'
import { httpGet } from '../sandbox/init/downloads.js'
import { hasCode } from '../testing/errors.js'
import { type FileServer, fileServer } from '../testing/file-server.js'
import { seededRandom } from '../testing/random.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { type DownloadOptions, downloadVerified, readText, shown } from './download.js'

const content = seededRandom(5).bytes(300_000)
const sha256Of = (bytes: Buffer) => createHash('sha256').update(bytes).digest('hex')
const sha256 = sha256Of(content)

interface Scene {
  server: FileServer
  folder: string
  part: string
  target: string
  download(changes?: Partial<DownloadOptions>): Promise<void>
  /** Names in the folder. */
  left(): Promise<string[]>
}

async function scene(t: TestScope): Promise<Scene> {
  const server = await fileServer(t, { '/file': content })
  const folder = await temporaryFolder(t)
  const { get, close } = httpGet({})
  t.after(close)
  const part = path.join(folder, 'file.part')
  const target = path.join(folder, 'file')
  const usual = { url: new URL(`${server.url}/file`), sha256, maxBytes: 1_000_000, part, target, get }
  return {
    ...{ server, folder, part, target },
    download: (changes = {}) => downloadVerified({ ...usual, ...changes }),
    left: async () => (await readdir(folder)).sort(),
  }
}

describe('a download', () => {
  it('gets its name when it is whole, and tells how far it is', async (t) => {
    const { server, target, download, left } = await scene(t)
    const seen: { bytes: number; totalBytes: number | undefined }[] = []
    await download({ onProgress: (progress) => seen.push(progress) })
    assert.deepEqual(await readFile(target), content)
    assert.deepEqual(await left(), ['file'])
    assert.deepEqual(seen[0], { bytes: 0, totalBytes: content.length })
    assert.deepEqual(seen.at(-1), { bytes: content.length, totalBytes: content.length })
    assert.deepEqual(server.requests, ['/file'])
  })

  it('goes on where another process left it', async (t) => {
    const { server, part, target, download } = await scene(t)
    await writeFile(part, content.subarray(0, 100_000))
    await download()
    assert.deepEqual(await readFile(target), content)
    assert.deepEqual(server.requests, ['/file bytes=100000-'])
  })

  it('goes on when the connection breaks, and begins anew with a server without ranges', async (t) => {
    for (const hasRanges of [true, false]) {
      const { server, target, download } = await scene(t)
      server.hasRanges = hasRanges
      server.cuts.push(65_536)
      await download()
      assert.deepEqual(await readFile(target), content)
      const [first, second] = server.requests
      assert.equal(first, '/file')
      assert.match(second ?? '', /^\/file bytes=[1-9]\d*-$/)
      assert.equal(server.requests.length, 2)
    }
  })

  it('gives up a server that brings nothing, and keeps what came before', async (t) => {
    const { server, part, download } = await scene(t)
    server.cuts.push(65_536, 0, 0, 0, 0)
    await assert.rejects(download(), hasCode('host-missing', /cannot get http:.*\/file: .+/))
    const kept = await readFile(part)
    assert.ok(kept.length > 0 && kept.equals(content.subarray(0, kept.length)), `${kept.length} bytes`)
    assert.equal(server.requests.length, 4)
  })

  it('tries again what a server says is passing', async (t) => {
    const { server, target, download } = await scene(t)
    server.refusals.push(503)
    await download()
    assert.deepEqual(await readFile(target), content)
  })

  it('asks nobody when all of it had come, and only the name was missing', async (t) => {
    const { server, part, download, left } = await scene(t)
    await writeFile(part, content)
    await download()
    assert.deepEqual(server.requests, [])
    assert.deepEqual(await left(), ['file'])
  })

  it('fetches once more what was taken up and turned out wrong', async (t) => {
    for (const wrong of [Buffer.from('something else'), Buffer.alloc(content.length), Buffer.alloc(400_000)]) {
      const { part, target, download } = await scene(t)
      await writeFile(part, wrong)
      await download()
      assert.deepEqual(await readFile(target), content)
    }
  })

  it('of something else leaves nothing', async (t) => {
    const { server, download, left } = await scene(t)
    const other = Buffer.from('not it')
    server.files.set('/file', other)
    await assert.rejects(
      download(),
      hasCode('checksum-mismatch', new RegExp(`${sha256Of(other)} instead of ${sha256}`)),
    )
    assert.deepEqual(await left(), [])
  })

  it('that is too large is refused, whether its length is told or not, and leaves nothing', async (t) => {
    for (const tellsLength of [true, false]) {
      const { server, download, left } = await scene(t)
      server.tellsLength = tellsLength
      await assert.rejects(download({ maxBytes: content.length - 1 }), hasCode('bad-request', /more than 299999 bytes/))
      assert.deepEqual(await left(), [])
      await download({ maxBytes: content.length })
    }
  })

  it('that is ended leaves what has come', async (t) => {
    const { server, part, target, download } = await scene(t)
    server.pauseMs = 20
    const reason = new Error('enough')
    const controller = new AbortController()
    const ended = download({ signal: controller.signal })
    while (((await readFile(part).catch(() => undefined))?.length ?? 0) === 0)
      await new Promise((resolve) => setTimeout(resolve, 5))
    controller.abort(reason)
    await assert.rejects(ended, (error) => error === reason)
    const kept = await readFile(part)
    assert.ok(kept.length < content.length && kept.equals(content.subarray(0, kept.length)))
    server.pauseMs = 0
    await download()
    assert.deepEqual(await readFile(target), content)
    assert.equal(server.requests.at(-1), `/file bytes=${kept.length}-`)
  })

  for (const [status, code, message] of [
    [404, 'file-not-found', /\/gone is not there: the server answers 404/],
    [403, 'host-missing', /\/file: the server answers 403, it is not permitted/],
    [418, 'host-missing', /\/file: the server answers 418/],
  ] as const) {
    it(`that is answered by ${status} is not tried again`, async (t) => {
      const { server, download } = await scene(t)
      if (status !== 404) server.refusals.push(status)
      const url = new URL(`${server.url}${status === 404 ? '/gone' : '/file'}`)
      await assert.rejects(download({ url }), hasCode(code, message))
      assert.equal(server.requests.length, 1)
    })
  }

  it('says who cannot be reached', async (t) => {
    const { server, download } = await scene(t)
    await server.close()
    await assert.rejects(download(), hasCode('host-missing', /cannot reach 127\.0\.0\.1:\d+: .*ECONNREFUSED/))
  })

  it('gives a user and a password to the server, and to nobody else', async (t) => {
    const { server, target, download } = await scene(t)
    server.authorization = `Basic ${Buffer.from('me:s3cret/').toString('base64')}`
    const url = new URL(`${server.url}/file`.replace('//', '//me:s3cret%2F@'))
    await download({ url })
    assert.deepEqual(await readFile(target), content)
    server.authorization = 'Basic other'
    await assert.rejects(download({ url, part: `${target}.other` }), (error: Error) => !/s3cret/.test(error.message))
    assert.equal(shown(url), `${server.url}/file`)
  })

  it('is a copy, of a file of this host', async (t) => {
    const { folder, part, target, download } = await scene(t)
    const source = path.join(folder, 'a source')
    await writeFile(source, content)
    await writeFile(part, content.subarray(0, 7))
    await download({ url: pathToFileURL(source) })
    assert.deepEqual(await readFile(target), content)
    const missing = pathToFileURL(path.join(folder, 'missing'))
    await assert.rejects(download({ url: missing }), hasCode('file-not-found', /there is no .*missing/))
    await assert.rejects(download({ url: pathToFileURL(folder) }), hasCode('bad-request', /is no file/))
  })
})

describe('a text', () => {
  it('is read, bounded, and undefined where there is none', async (t) => {
    const { server } = await scene(t)
    const { get, close } = httpGet({})
    t.after(close)
    server.files.set('/text', Buffer.from('words\n'))
    const read = (name: string, maxBytes = 6) => readText(new URL(`${server.url}${name}`), { get, maxBytes })
    assert.equal(await read('/text'), 'words\n')
    assert.equal(await read('/none'), undefined)
    await assert.rejects(read('/text', 5), hasCode('bad-request', /more than 5 bytes/))
    server.cuts.push(0)
    assert.equal(await read('/text'), 'words\n')
  })
})
