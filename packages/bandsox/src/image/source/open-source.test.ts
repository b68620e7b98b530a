import assert from 'node:assert/strict'
import { chmod, mkdir, readdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { buffer } from 'node:stream/consumers'
import { describe, it } from 'node:test'
import { gzipSync } from 'node:zlib'
import { pack } from 'tar-stream'
import { hasCode } from '../../testing/errors.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { DEFAULT_LIMITS } from '../layer/limits.js'
import { openPath, openSource, type SourceContext } from './open-source.js'
import { registryConfigSchema } from './registry/registry-config.js'

async function tarOf(files: Record<string, string | Buffer>): Promise<Buffer> {
  const tar = pack()
  for (const [name, content] of Object.entries(files)) tar.entry({ name }, Buffer.from(content))
  tar.finalize()
  return await buffer(tar)
}

/** What docker save writes of an image with one layer. */
async function dockerArchive(names: string[] = ['mine:1']): Promise<Buffer> {
  const config = { os: 'linux', architecture: 'amd64', rootfs: { type: 'layers', diff_ids: [] } }
  const manifest = [{ Config: 'config.json', RepoTags: names, Layers: ['one/layer.tar'] }]
  return await tarOf({
    'config.json': JSON.stringify(config),
    'one/layer.tar': await tarOf({ file: 'content' }),
    'manifest.json': JSON.stringify(manifest),
  })
}

async function contextOf(t: TestScope): Promise<SourceContext> {
  return {
    registries: registryConfigSchema.parse({}),
    credentialSources: { files: [], environment: {} },
    proxy: {},
    workFolder: await temporaryFolder(t),
    platform: { os: 'linux', architecture: 'amd64' },
    limits: DEFAULT_LIMITS,
    debug: () => undefined,
  }
}

describe('a path', () => {
  it('is an archive of docker save, also a compressed one, and nothing is left of what was unpacked', async (t) => {
    const context = await contextOf(t)
    const folder = await temporaryFolder(t)
    await writeFile(path.join(folder, 'plain'), await dockerArchive())
    await writeFile(path.join(folder, 'packed'), gzipSync(await dockerArchive()))
    const digests = []
    for (const name of ['plain', 'packed']) {
      const source = await openPath(path.join(folder, name), context)
      assert.equal(source.kind, 'docker-archive')
      assert.deepEqual(source.names, ['mine:1'])
      digests.push((await source.root()).digest)
      await source.close()
    }
    assert.equal(digests[0], digests[1])
    assert.deepEqual(await readdir(context.workFolder), [])
  })

  it('is a tar of a file system when it is neither archive', async (t) => {
    const folder = await temporaryFolder(t)
    await writeFile(path.join(folder, 'rootfs'), await tarOf({ 'etc/hostname': 'here' }))
    const source = await openPath(path.join(folder, 'rootfs'), await contextOf(t))
    assert.equal(source.kind, 'rootfs')
    await source.close()
  })

  for (const [what, files] of [
    ['with a file index.json', { 'index.json': '{}' }],
    ['with a file manifest.json', { 'manifest.json': '{"name":"web app"}' }],
    ['with both and folders', { 'index.json': '{}', 'oci-layout': '{}', 'manifest.json': '[]', 'usr/bin/x': '' }],
    ['of more files than an image has', Object.fromEntries(Array.from({ length: 100_001 }, (_, n) => [`${n}`, '']))],
  ] as const)
    it(`is a tar of a file system ${what}`, async (t) => {
      const context = await contextOf(t)
      const file = path.join(await temporaryFolder(t), 'rootfs')
      await writeFile(file, await tarOf(files))
      const source = await openPath(file, context)
      assert.equal(source.kind, 'rootfs')
      await source.close()
      assert.deepEqual(await readdir(context.workFolder), [])
    })

  it('is told of while it is unpacked and hashed', async (t) => {
    const told: string[] = []
    const context = { ...(await contextOf(t)), onActivity: (what: string) => void told.push(what) }
    const file = path.join(await temporaryFolder(t), 'packed')
    await writeFile(file, gzipSync(await dockerArchive()))
    await (await openPath(file, context)).close()
    assert.deepEqual(told, [`unpacking ${file}`, `hashing the layers of ${file}`])
  })

  it('that unpacks to more than an image may have is refused, and nothing is left of it', async (t) => {
    const context = { ...(await contextOf(t)), limits: { ...DEFAULT_LIMITS, maxBytes: 100_000 } }
    const file = path.join(await temporaryFolder(t), 'bomb')
    await writeFile(file, gzipSync(await tarOf({ 'index.json': '{}', large: Buffer.alloc(3_000_000) })))
    await assert.rejects(openPath(file, context), hasCode('image-too-large', /over 100000 bytes/))
    assert.deepEqual(await readdir(context.workFolder), [])
  })

  it('that is none of them is told what it should be', async (t) => {
    const context = await contextOf(t)
    const folder = await temporaryFolder(t)
    await writeFile(path.join(folder, 'text'), 'x'.repeat(2000))
    const open = (name: string) => openPath(path.join(folder, name), context)
    await assert.rejects(open('text'), {
      ...hasHint(/an OCI layout, what docker save writes, or a tar/),
      code: 'layer-invalid',
    })
    await assert.rejects(open('missing'), hasCode('file-not-found', /there is no .*missing/))
    await assert.rejects(open('.'), hasCode('image-invalid', /holds no index\.json/))
    await writeFile(path.join(folder, 'other'), await tarOf({ a: '' }))
    const file = path.join(folder, 'other')
    for (const [kind, missing] of [
      ['oci-archive', /other holds no index\.json/],
      ['docker-archive', /other holds no manifest\.json/],
    ] as const) {
      const reference = { kind, file, tag: undefined, reference: undefined }
      await assert.rejects(openSource(reference, context), hasCode('image-invalid', missing))
    }
    assert.deepEqual(await readdir(context.workFolder), [])
  })
})

const hasHint = (hint: RegExp) => ({ hint })

describe('an engine on the host', () => {
  /** A program of this name that does what `script` says, as the only one in PATH besides the system's. */
  async function standIn(
    t: TestScope & { after: (work: () => void) => void },
    name: string,
    script: string,
  ): Promise<void> {
    const folder = await temporaryFolder(t)
    await writeFile(path.join(folder, name), `#!/bin/sh\n${script}\n`)
    await chmod(path.join(folder, name), 0o755)
    const before = process.env['PATH']
    process.env['PATH'] = `${folder}:/usr/bin:/bin`
    t.after(() => {
      process.env['PATH'] = before
    })
  }

  it('is asked by its own program to save the image, which is removed again', async (t) => {
    const context = await contextOf(t)
    const folder = await temporaryFolder(t)
    await mkdir(path.join(folder, 'engine'))
    const archive = path.join(folder, 'engine/archive')
    await writeFile(archive, await dockerArchive())
    await standIn(
      t,
      'docker',
      `[ "$*" = "image save --output $4 mine:1" ] || { echo "asked for $*" >&2; exit 1; }; cp ${archive} "$4"`,
    )
    const told: string[] = []
    const onActivity = (what: string) => void told.push(what)
    const source = await openSource({ kind: 'docker-daemon', name: 'mine:1' }, { ...context, onActivity })
    assert.equal(told[0], 'saving mine:1 from docker')
    const root = await source.root()
    assert.equal(root.mediaType, 'application/vnd.oci.image.manifest.v1+json')
    await source.close()
    assert.deepEqual(await readdir(context.workFolder), [])
  })

  it('says in its own words what is wrong', async (t) => {
    const context = await contextOf(t)
    await standIn(t, 'podman', 'echo "mine:1: image not known" >&2; exit 125')
    await assert.rejects(
      openSource({ kind: 'podman', name: 'mine:1' }, context),
      hasCode('command-failed', /podman image exited with 125: mine:1: image not known/),
    )
    assert.deepEqual(await readdir(context.workFolder), [])
  })
})

describe('a source that is not allowed', () => {
  const refused = hasCode('permission-denied', /not allowed here, but of: registry$/)

  it('is refused by its kind, before anything of it is looked at', async (t) => {
    const context = { ...(await contextOf(t)), allowedKinds: new Set(['registry'] as const) }
    for (const reference of [
      { kind: 'oci', folder: '/nowhere', tag: undefined },
      { kind: 'oci-archive', file: '/nowhere', tag: undefined },
      { kind: 'docker-archive', file: '/nowhere', reference: undefined },
      { kind: 'docker-daemon', name: 'a' },
      { kind: 'podman', name: 'a' },
      { kind: 'rootfs', file: '/nowhere' },
    ] as const)
      await assert.rejects(openSource(reference, context), refused)
    await assert.rejects(openPath('/nowhere', context), refused)
    const registry = { kind: 'registry', registry: 'a.example', repository: 'b', tag: 'c', digest: undefined } as const
    await (await openSource(registry, context)).close()
  })

  it('is a registry on this host, when that is not allowed', async (t) => {
    const context = { ...(await contextOf(t)), allowLoopback: false }
    const registry = {
      kind: 'registry',
      registry: '127.0.0.1:1',
      repository: 'b',
      tag: 'c',
      digest: undefined,
    } as const
    const source = await openSource(registry, context)
    await assert.rejects(source.root(), hasCode('permission-denied', /127\.0\.0\.1 is on this host/))
    await source.close()
  })
})
