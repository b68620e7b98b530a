import assert from 'node:assert/strict'
import { chmod, mkdir, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { pathToFileURL } from 'node:url'
import { BandSoxError } from '@bandsox/sdk'
import { hasCode } from '../../testing/errors.js'
import { type FileServer, fileServer } from '../../testing/file-server.js'
import { runModule } from '../../testing/module-process.js'
import { seededRandom } from '../../testing/random.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { findInstalledFirecracker } from '../../vmm/firecracker/installed.js'
import { httpGet } from './downloads.js'
import { type InstallRequest, installFirecracker } from './install-firecracker.js'
import { published, type Release, release } from './testing/release.js'

interface Scene {
  server: FileServer
  storage: string
  install(request?: InstallRequest, signal?: AbortSignal): ReturnType<typeof installFirecracker>
}

async function scene(t: TestScope, files: Record<string, Buffer>): Promise<Scene> {
  const server = await fileServer(t, files)
  const storage = path.join(await temporaryFolder(t), 'storage')
  await mkdir(storage)
  const { get, close } = httpGet({})
  t.after(close)
  const install = (request: InstallRequest = {}, signal?: AbortSignal) =>
    installFirecracker({ url: server.url, ...request }, { storage, get, signal })
  return { server, storage, install }
}

/** Everything that is there: whole, and nothing else. */
async function assertWhole(storage: string, version: string, { firecracker, jailer }: Release): Promise<void> {
  const directory = path.join(storage, 'vmm', `firecracker-${version}`)
  assert.deepEqual(await findInstalledFirecracker(storage), {
    version,
    firecracker: path.join(directory, 'firecracker'),
    jailer: path.join(directory, 'jailer'),
  })
  assert.deepEqual(await readFile(path.join(directory, 'firecracker')), firecracker)
  assert.deepEqual(await readFile(path.join(directory, 'jailer')), jailer)
  assert.deepEqual((await readdir(directory)).sort(), ['firecracker', 'jailer', 'release.json'])
  for (const name of ['', 'firecracker', 'jailer'])
    assert.equal((await stat(path.join(directory, name))).mode & 0o777, 0o755, name)
  assert.deepEqual(await readdir(path.join(storage, 'downloads')), [])
}

const one = release()

describe('Firecracker', () => {
  it('is installed from a mirror that is made like the project’s releases', async (t) => {
    const { server, storage, install } = await scene(t, published(one, '/v1.16.1'))
    assert.equal((await install()).made, true)
    await assertWhole(storage, '1.16.1', one)
    const record = JSON.parse(
      await readFile(path.join(storage, 'vmm/firecracker-1.16.1/release.json'), 'utf8'),
    ) as Record<string, unknown>
    assert.equal(record['source'], `${server.url}/v1.16.1/${one.name}`)
    assert.equal(record['archiveSha256'], one.sha256)
    assert.deepEqual(server.requests, [`/v1.16.1/${one.name}.sha256.txt`, `/v1.16.1/${one.name}`])
  })

  it('is installed once: then nobody is asked', async (t) => {
    const { server, storage, install } = await scene(t, published(one, '/v1.16.1'))
    await install()
    await server.close()
    assert.equal((await install()).made, false)
    assert.equal((await install({ sha256: one.sha256.toUpperCase() })).made, false)
    await assertWhole(storage, '1.16.1', one)
  })

  it('is installed from a folder of archives, a URL of one, and files of this host', async (t) => {
    const { server, storage, install } = await scene(t, published(one))
    await install()
    await assertWhole(storage, '1.16.1', one)
    const archive = await scene(t, published(one, '/x'))
    await archive.install({ url: `${archive.server.url}/x/${one.name}` })
    await assertWhole(archive.storage, '1.16.1', one)
    const folder = await temporaryFolder(t)
    for (const [name, bytes] of Object.entries(published(one))) await writeFile(path.join(folder, name), bytes)
    for (const url of [pathToFileURL(folder).href, pathToFileURL(path.join(folder, one.name)).href]) {
      const local = await scene(t, {})
      await local.install({ url })
      await assertWhole(local.storage, '1.16.1', one)
      assert.deepEqual(local.server.requests, [])
    }
    assert.equal(server.requests[0], `/v1.16.1/${one.name}.sha256.txt`)
  })

  it('is never installed without a checksum; with one from the user none has to be published', async (t) => {
    const { server, storage, install } = await scene(t, { [`/${one.name}`]: one.archive })
    await assert.rejects(install(), (error) => {
      hasCode('file-not-found', /no checksum is published/)(error)
      assert.match((error as BandSoxError).hint ?? '', /--firecracker-sha256 HEX/)
      return true
    })
    assert.ok(!server.requests.some((each) => each.endsWith('.tgz')), 'nothing was fetched')
    assert.equal(await findInstalledFirecracker(storage), undefined)
    await install({ sha256: one.sha256 })
    await assertWhole(storage, '1.16.1', one)
  })

  it('with another checksum leaves nothing', async (t) => {
    const { storage, install } = await scene(t, {
      ...published(one),
      [`/${one.name}.sha256.txt`]: Buffer.from(`${'0'.repeat(64)}  ${one.name}\n`),
    })
    await assert.rejects(install(), hasCode('checksum-mismatch', new RegExp(`SHA-256 ${one.sha256} instead of 0000`)))
    assert.deepEqual(await readdir(path.join(storage, 'downloads')), [])
    assert.equal(await findInstalledFirecracker(storage), undefined)
    await assert.rejects(install({ sha256: 'f'.repeat(64) }), hasCode('checksum-mismatch'))
    await assert.rejects(install({ sha256: 'f' }), hasCode('bad-request', /--firecracker-sha256/))
  })

  it('is fetched through the proxy that images are fetched through', async (t) => {
    const { server, storage } = await scene(t, published(one))
    const { get, close } = httpGet({ http: server.url })
    t.after(close)
    await installFirecracker({ url: 'http://mirror.example/' }, { storage, get })
    await assertWhole(storage, '1.16.1', one)
    assert.equal(server.requests.at(-1), `/${one.name}`)
  })

  it('that was interrupted is gone on with, and no version is there meanwhile', async (t) => {
    const { server, storage, install } = await scene(t, published(one, '/v1.16.1'))
    server.pauseMs = 10
    const controller = new AbortController()
    const reason = new BandSoxError('cancelled', 'enough')
    const interrupted = install({}, controller.signal)
    const part = path.join(storage, 'downloads', `${one.sha256}.part`)
    while (((await stat(part).catch(() => undefined))?.size ?? 0) < 50_000)
      await new Promise((resolve) => setTimeout(resolve, 2))
    controller.abort(reason)
    await assert.rejects(interrupted, (error) => error === reason)
    assert.equal(await findInstalledFirecracker(storage), undefined)
    assert.deepEqual(await readdir(path.join(storage, 'downloads')), [`${one.sha256}.part`])
    const { size } = await stat(part)
    server.pauseMs = 0
    await install()
    await assertWhole(storage, '1.16.1', one)
    assert.equal(server.requests.at(-1), `/v1.16.1/${one.name} bytes=${size}-`)
  })

  it('that cannot be had is explained: what to place where, and what to type', async (t) => {
    const { server, storage, install } = await scene(t, {})
    const explains = (code: 'file-not-found' | 'host-missing', message: RegExp) => (error: unknown) => {
      hasCode(code, message)(error)
      const { hint = '' } = error as BandSoxError
      const folder = path.join(storage, 'downloads/offline')
      for (const part of [
        `place ${one.name} and ${one.name}.sha256.txt`,
        `--firecracker-url ${pathToFileURL(folder).href}`,
        folder,
        '--skip-firecracker',
      ])
        assert.ok(hint.includes(part), `${part} in ${hint}`)
      return true
    }
    await assert.rejects(install(), explains('file-not-found', /cannot get Firecracker 1\.16\.1: no checksum/))
    await assert.rejects(install({ sha256: one.sha256 }), explains('file-not-found', /v1\.16\.1\/.* is not there/))
    await server.close()
    await assert.rejects(install(), explains('host-missing', /cannot get Firecracker 1\.16\.1: .*ECONNREFUSED/))
    // And that works.
    const folder = path.join(storage, 'downloads/offline')
    await mkdir(folder)
    for (const [name, bytes] of Object.entries(published(one))) await writeFile(path.join(folder, name), bytes)
    assert.equal((await install({ url: pathToFileURL(folder).href })).made, true)
  })

  it('is fetched again by force, and where it is damaged', async (t) => {
    const { server, storage, install } = await scene(t, published(one, '/v1.16.1'))
    await install()
    const [firecracker, jailer] = ['firecracker', 'jailer'].map((name) =>
      path.join(storage, 'vmm/firecracker-1.16.1', name),
    ) as [string, string]
    assert.equal((await install({ force: true })).made, true)
    assert.equal(server.requests.length, 4)
    await assertWhole(storage, '1.16.1', one)
    await writeFile(firecracker, one.firecracker.subarray(1))
    await assert.rejects(findInstalledFirecracker(storage), hasCode('artifact-damaged', /firecracker has \d+ bytes/))
    assert.equal((await install()).made, true)
    await assertWhole(storage, '1.16.1', one)
    // A change that leaves the size is not seen by a start, and is by init.
    await writeFile(jailer, Buffer.alloc(one.jailer.length))
    assert.equal((await install()).made, true)
    await assertWhole(storage, '1.16.1', one)
    await writeFile(path.join(storage, 'vmm/firecracker-1.16.1/release.json'), '{')
    assert.equal((await install()).made, true)
    await writeFile(path.join(storage, 'vmm/firecracker.json'), '{')
    assert.equal((await install()).made, false)
    await assertWhole(storage, '1.16.1', one)
  })

  it('has several versions beside each other, of which the last one counts', async (t) => {
    const other = release('1.15.0')
    const { server, storage, install } = await scene(t, { ...published(one), ...published(other) })
    await install()
    await install({ version: '1.15.0' })
    await assertWhole(storage, '1.15.0', other)
    const asked = server.requests.length
    assert.equal((await install()).made, false)
    await assertWhole(storage, '1.16.1', one)
    assert.equal(server.requests.length, asked)
  })

  it('of the same version from another archive takes its place', async (t) => {
    const rebuilt = release('1.16.1', { salt: 'rebuilt' })
    const { server, storage, install } = await scene(t, published(one))
    await install()
    for (const [name, bytes] of Object.entries(published(rebuilt))) server.files.set(name, bytes)
    await install({ sha256: rebuilt.sha256 })
    await assertWhole(storage, '1.16.1', rebuilt)
  })

  it('without a jailer is installed so', async (t) => {
    const { install } = await scene(t, published(release('1.16.1', { hasJailer: false })))
    assert.equal((await install()).installed.jailer, undefined)
  })

  it('that is not in the archive leaves nothing, and the archive’s version is told', async (t) => {
    const { server, storage, install } = await scene(t, {})
    const other = release('1.15.0')
    server.files.set('/latest.tgz', other.archive)
    const url = `${server.url}/latest.tgz`
    await assert.rejects(
      install({ url, sha256: other.sha256 }),
      hasCode(
        'artifact-damaged',
        /has no release-v1\.16\.1-.*, but "release-v1\.15\.0-\w+\/firecracker-v1\.15\.0-\w+"/,
      ),
    )
    assert.deepEqual(await readdir(path.join(storage, 'vmm')), [])
    assert.deepEqual(await readdir(path.join(storage, 'downloads')), [])
    await install({ url, sha256: other.sha256, version: '1.15.0' })
    await assertWhole(storage, '1.15.0', other)
  })

  it('is installed by many at once as by one', async (t) => {
    const { server, storage } = await scene(t, published(one, '/v1.16.1'))
    server.pauseMs = 2
    const processes = [1, 2, 3].map(() => runModule(t, import.meta.url, INSTALL, [storage, server.url]))
    assert.deepEqual((await Promise.all(processes.map(({ done }) => done))).sort(), ['false', 'false', 'true'])
    assert.equal(server.requests.filter((each) => each.endsWith('.tgz')).length, 1)
    await assertWhole(storage, '1.16.1', one)
  })

  it('whose installing was killed at any moment is whole the next time', async (t) => {
    const { server, storage, install } = await scene(t, published(one, '/v1.16.1'))
    server.pauseMs = 2
    const random = seededRandom(11)
    for (let round = 0; round < 6; round++) {
      const { child, printed } = runModule(t, import.meta.url, INSTALL, [storage, server.url, 'force'])
      await printed('begin')
      await new Promise((resolve) => setTimeout(resolve, random.below(120)))
      const ended = new Promise((resolve) => child.once('close', resolve))
      child.kill('SIGKILL')
      await ended
      // Either nobody sees one, or it is whole.
      const seen = await findInstalledFirecracker(storage)
      if (seen !== undefined) assert.deepEqual(await readFile(seen.firecracker), one.firecracker)
    }
    const resumed = server.requests.filter((each) => each.includes(' bytes=')).length
    await install({ force: true })
    await assertWhole(storage, '1.16.1', one)
    assert.deepEqual((await readdir(path.join(storage, 'vmm'))).sort(), ['firecracker-1.16.1', 'firecracker.json'])
    t.diagnostic(`${resumed} of 6 went on with what was there`)
  })

  it('cannot be installed where nobody may write, and says so', { skip: process.getuid?.() === 0 }, async (t) => {
    const { storage, install } = await scene(t, published(one))
    await chmod(storage, 0o500)
    t.after(() => chmod(storage, 0o700))
    await assert.rejects(install(), /EACCES/)
  })
})

const INSTALL = `
const { installFirecracker } = await import(url('./install-firecracker.js'))
const { httpGet } = await import(url('./downloads.js'))
const [storage, mirror, force] = args
const { get, close } = httpGet({})
if (force) process.stdout.write('begin')
const { made } = await installFirecracker({ url: mirror, force: force === 'force' }, { storage, get })
process.stdout.write(String(made))
await close()
`
