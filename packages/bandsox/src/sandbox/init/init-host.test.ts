import assert from 'node:assert/strict'
import { mkdir, readdir, readFile, utimes, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { pathToFileURL } from 'node:url'
import type { BandSoxError } from '@bandsox/sdk'
import { elfKernel } from '../../artifact/elf.fixture.js'
import { hasCode } from '../../testing/errors.js'
import { type FileServer, fileServer } from '../../testing/file-server.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { type InitEvent, type InitOptions, initHost } from './init-host.js'
import { published, release, sha256Of } from './testing/release.js'

const kernel = elfKernel('6.1.0')
const one = release()

interface Scene {
  server: FileServer
  folder: string
  storage: string
  /** Without the image, which takes tools of the host's. */
  init(
    options?: InitOptions,
  ): Promise<{ host: Awaited<ReturnType<typeof initHost>>; events: InitEvent[]; steps: string[] }>
}

async function scene(t: TestScope): Promise<Scene> {
  const server = await fileServer(t, { ...published(one), '/vmlinux': kernel })
  server.files.set('/vmlinux.sha256', Buffer.from(sha256Of(kernel)))
  const folder = await temporaryFolder(t)
  const storage = path.join(folder, 'storage')
  const agentPath = path.join(folder, 'agent')
  await writeFile(agentPath, 'an agent')
  return {
    ...{ server, folder, storage },
    async init(options = {}) {
      const events: InitEvent[] = []
      const host = await initHost(
        { storage, agentPath, proxy: {} },
        { skip: ['image', 'disk'], report: (event) => events.push(event), ...options },
      )
      const steps = events.flatMap((event) => (event.kind === 'step' ? [`${event.step} ${event.made}`] : []))
      return { host, events, steps }
    },
  }
}

describe('a host', () => {
  it('gets Firecracker and a kernel, tells how far it is, and the second time there is nothing to do', async (t) => {
    const { server, storage, init } = await scene(t)
    const options = { firecrackerUrl: server.url, kernelUrl: `${server.url}/vmlinux` }
    const first = await init(options)
    assert.deepEqual(first.steps, ['firecracker true', 'kernel true'])
    assert.equal(first.host.firecracker?.version, '1.16.1')
    assert.deepEqual(await readFile(first.host.boot?.kernel.vmlinux.path ?? ''), kernel)
    const { url, bytes, totalBytes } = first.events.findLast((each) => each.kind === 'download') ?? assert.fail()
    assert.deepEqual(
      { url, bytes, totalBytes },
      { url: options.kernelUrl, bytes: kernel.length, totalBytes: kernel.length },
    )
    assert.ok(first.events.some((each) => each.kind === 'download' && each.url === `${server.url}/${one.name}`))
    const second = await init(options)
    assert.deepEqual(second.steps, ['firecracker false', 'kernel false'])
    assert.deepEqual(second.host, first.host)
    assert.deepEqual(
      second.events.filter(({ kind }) => kind === 'download'),
      [],
    )
    await server.close()
    assert.deepEqual((await init({ kernelUrl: options.kernelUrl, kernelSha256: sha256Of(kernel) })).host, first.host)
    assert.deepEqual((await init()).host, first.host)
    assert.deepEqual(await readdir(path.join(storage, 'downloads')), [`kernel-${sha256Of(kernel)}`])
  })

  it('gets a kernel from a file of its own, and makes it anew from what is kept when it is damaged', async (t) => {
    const { folder, init } = await scene(t)
    const file = path.join(folder, 'my vmlinux')
    await writeFile(file, kernel)
    const { host } = await init({
      skip: ['firecracker', 'image', 'disk'],
      kernelUrl: pathToFileURL(file).href,
      kernelSha256: sha256Of(kernel),
    })
    const vmlinux = host.boot?.kernel.vmlinux.path ?? ''
    await utimes(vmlinux, new Date(), new Date())
    const again = await init({ skip: ['firecracker', 'image', 'disk'] })
    assert.deepEqual(again.steps, ['kernel true'])
    assert.deepEqual(await readFile(vmlinux), kernel)
  })

  it('gets a kernel that is verified, or none', async (t) => {
    const { server, storage, init } = await scene(t)
    const skip = ['firecracker', 'image', 'disk'] as const
    const kernelUrl = `${server.url}/vmlinux`
    const other = { skip, kernelUrl, kernelSha256: '0'.repeat(64) }
    await assert.rejects(init(other), hasCode('checksum-mismatch', /\/vmlinux has the SHA-256/))
    server.files.delete('/vmlinux.sha256')
    await assert.rejects(init({ skip, kernelUrl }), (error) => {
      hasCode('file-not-found', /cannot get the guest kernel: no checksum is published beside/)(error)
      assert.match((error as BandSoxError).hint ?? '', /--kernel-sha256 HEX; or .*file:\/\/\/PATH/)
      return true
    })
    await server.close()
    await assert.rejects(
      init({ skip, kernelUrl }),
      hasCode('host-missing', /cannot get the guest kernel: .*ECONNREFUSED/),
    )
    assert.deepEqual(await readdir(storage), ['downloads'])
    assert.deepEqual(await readdir(path.join(storage, 'downloads')), [])
  })

  it('is told when its Firecracker has no jailer', async (t) => {
    const { server, init } = await scene(t)
    for (const [name, bytes] of Object.entries(published(release('1.16.1', { hasJailer: false }))))
      server.files.set(name, bytes)
    const { events } = await init({ firecrackerUrl: server.url, skip: ['kernel', 'image', 'disk'] })
    const warning = events.find((each) => each.kind === 'warning') ?? assert.fail()
    assert.match(warning.message, /has no jailer/)
  })

  it('is rid of what nobody went on with for a week', async (t) => {
    const { storage, init } = await scene(t)
    const downloads = path.join(storage, 'downloads')
    await mkdir(downloads, { recursive: true })
    const [old, young, other] = [`${'a'.repeat(64)}.part`, `${'b'.repeat(64)}.part`, 'offline.part']
    for (const name of [old, young, other]) await writeFile(path.join(downloads, name), '')
    const past = new Date(Date.now() - 8 * 24 * 3_600_000)
    for (const name of [old, other]) await utimes(path.join(downloads, name), past, past)
    await init({ skip: ['firecracker', 'kernel', 'image', 'disk'] })
    assert.deepEqual((await readdir(downloads)).sort(), [young, other].sort())
  })

  for (const [options, message] of [
    [{ kernelSha256: '0'.repeat(64) }, /--kernel-url names: give both/],
    [{ kernelUrl: 'file:///k', skip: ['kernel'] }, /exclude each other/],
    [{ firecrackerVersion: '1.2.3', skip: ['firecracker'] }, /--skip-firecracker excludes/],
    [{ kernelUrl: '/k', skip: ['firecracker'] }, /--kernel-url: "\/k" is no URL/],
    [{ firecrackerUrl: 'fc.tgz' }, /--firecracker-url: "fc.tgz" is no URL/],
    [{ firecrackerVersion: 'new' }, /is no version/],
  ] satisfies [InitOptions, RegExp][]) {
    it(`is not asked for ${JSON.stringify(options).slice(0, 70)}`, async (t) => {
      await assert.rejects((await scene(t)).init(options), hasCode('bad-request', message))
    })
  }
})
