import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { readdir, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { buffer } from 'node:stream/consumers'
import { describe, it, type TestContext } from 'node:test'
import { gzipSync } from 'node:zlib'
import type { ImageEvent, ImageInfo } from '@bandsox/sdk'
import { pack } from 'tar-stream'
import { beginFetching } from '../image/activity.js'
import { ImageStore } from '../image/image-store.js'
import { LayerWriter } from '../image/layer-file.js'
import { mediaTypes } from '../image/manifest.js'
import { hasCode } from '../testing/errors.js'
import { noLayers } from '../testing/no-images.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { LocalImages, type SandboxLayer } from './local-images.js'

const skip =
  spawnSync('sqfstar', ['-version']).error === undefined ? false : 'sqfstar (squashfs-tools 4.5) is not installed'

/** Images of a folder of their own, with the sandboxes that a test says there are. */
async function imagesOf(t: TestScope, configuration?: unknown) {
  const folder = await temporaryFolder(t)
  const configFile = path.join(folder, 'config.json')
  if (configuration !== undefined) await writeFile(configFile, JSON.stringify(configuration))
  const sandboxes = new Map<string, string[]>()
  const store = new ImageStore(path.join(folder, 'images'))
  const layers = { ...noLayers }
  const images = new LocalImages({
    store,
    settings: { configFile, credentialSources: { files: [], environment: {} }, proxy: {} },
    sandboxesByImage: async () => sandboxes,
    layers: { find: (sandbox) => layers.find(sandbox) },
    debug: () => undefined,
    warn: (message) => assert.fail(message),
  })
  return { folder, images, store, sandboxes, layers }
}

/** A tar of a root file system with one file. */
async function rootfs(content: string | Buffer): Promise<Buffer> {
  const tar = pack()
  tar.entry({ name: 'file' }, Buffer.from(content))
  tar.finalize()
  return await buffer(tar)
}

async function importFile(
  at: { folder: string; images: LocalImages },
  name: string,
  bytes: Buffer,
  reference?: string,
) {
  const file = path.join(at.folder, name)
  await writeFile(file, bytes)
  const { image } = await at.images.import(file, reference === undefined ? {} : { reference })
  return image
}

/** Bytes that no compressor makes smaller; the same for the same seed. */
function noise(sizeBytes: number, seed: number): Buffer {
  let state = seed
  const next = () => {
    state = (state * 48_271) % 2_147_483_647 // Lehmer's generator, "minstd"
    return state & 0xff
  }
  return Buffer.from(Uint8Array.from({ length: sizeBytes }, next))
}

/** A registry with images of one layer of noise, each tagged 1. @returns Its address. */
async function serveImages(t: TestContext, seeds: Record<string, number>): Promise<string> {
  const documents = new Map<string, { bytes: Buffer; type: string }>()
  const add = (bytes: Buffer, type = 'application/octet-stream') => {
    const digest = `sha256:${createHash('sha256').update(bytes).digest('hex')}`
    documents.set(digest, { bytes, type })
    return { digest, size: bytes.length }
  }
  for (const [name, seed] of Object.entries(seeds)) {
    const layer = add(await rootfs(noise(400_000, seed)))
    const rootFs = { type: 'layers', diff_ids: [layer.digest] }
    const config = add(Buffer.from(JSON.stringify({ os: 'linux', architecture: 'amd64', rootfs: rootFs })))
    const manifest = {
      schemaVersion: 2,
      config: { mediaType: mediaTypes.ociConfig, ...config },
      layers: [{ mediaType: mediaTypes.ociLayer, ...layer }],
    }
    const { digest } = add(Buffer.from(JSON.stringify(manifest)), mediaTypes.ociManifest)
    documents.set(`${name}/manifests/1`, {
      bytes: documents.get(digest)?.bytes ?? Buffer.alloc(0),
      type: mediaTypes.ociManifest,
    })
  }
  const server = createServer((request, response) => {
    const wanted = request.url?.replace('/v2/', '') ?? ''
    const found = documents.get(wanted) ?? documents.get(wanted.slice(wanted.lastIndexOf('/') + 1))
    if (found === undefined) response.writeHead(404).end()
    else response.writeHead(200, { 'content-type': found.type, 'content-length': found.bytes.length }).end(found.bytes)
  })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  t.after(() => server.close())
  return `127.0.0.1:${(server.address() as AddressInfo).port}`
}

/** A sandbox of an image, whose machine sends what it is told to. */
const layerOf = (image: ImageInfo, tar: Buffer): SandboxLayer => ({
  title: 'sandbox sbx_aaaaaaaaaa',
  image: { reference: image.references[0] ?? '', digest: image.id },
  async pack(limits, { file, onWarning }) {
    const writer = new LayerWriter(file, limits)
    await writer.write(tar)
    onWarning('/x is left out: a socket')
    return await writer.finish()
  },
})

describe('the image of a sandbox', { skip }, () => {
  it('has its layer on top of those of its image, and its name', async (t) => {
    const at = await imagesOf(t)
    const base = await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    at.layers.find = async () => layerOf(base, await rootfs('changed'))
    const events: ImageEvent[] = []
    const { image, changed } = await at.images.commit('any', 'mine:2', { onEvent: (event) => void events.push(event) })
    assert.equal(changed, true)
    assert.deepEqual(image.references, ['docker.io/library/mine:2'])
    assert.deepEqual(image.layers[0], base.layers[0])
    assert.equal(image.layers.length, 2)
    assert.deepEqual(
      events.flatMap((event) => (event.kind === 'warning' ? [event.message] : [])),
      ['/x is left out: a socket'],
    )
    const exported = path.join(at.folder, 'exported')
    await at.images.export('mine:2', exported)
    assert.equal((await readdir(path.join(exported, 'blobs/sha256'))).length, 4)
    // A name that is taken goes over, as a tag's does.
    const again = await at.images.commit('any', 'mine:1', { message: 'once more' })
    assert.deepEqual(again.image.references, ['docker.io/library/mine:1'])
    assert.deepEqual((await at.images.get(base.id)).references, [])
    assert.deepEqual(
      (await readdir(at.store.root)).filter((name) => name.startsWith('.')),
      [],
    )
  })

  it('is not made of a layer that no image may have, whoever sends it', async (t) => {
    const at = await imagesOf(t, { images: { limits: { maxLayers: 2, maxBytes: 100_000 } } })
    const base = await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    const tarOf = async (header: Parameters<ReturnType<typeof pack>['entry']>[0], content = '') => {
      const tar = pack()
      tar.entry(header, content)
      tar.finalize()
      return await buffer(tar)
    }
    for (const [tar, code] of [
      [await tarOf({ name: '../../escaped' }), 'layer-hostile'],
      [await tarOf({ name: 'disk', type: 'block-device', devmajor: 8, devminor: 0 }), 'layer-hostile'],
      [Buffer.alloc(700, 'x'), 'layer-invalid'],
      [await rootfs(noise(200_000, 1)), 'image-too-large'],
    ] as const) {
      at.layers.find = async () => layerOf(base, tar)
      await assert.rejects(at.images.commit('any', 'mine:2'), hasCode(code))
    }
    at.layers.find = async () => layerOf(base, await rootfs('changed'))
    const { image } = await at.images.commit('any', 'mine:two-layers')
    at.layers.find = async () => layerOf(image, await rootfs('changed'))
    await assert.rejects(at.images.commit('any', 'mine:2'), hasCode('image-too-large', /cannot get one more/))
    assert.deepEqual((await at.images.list()).flatMap(({ references }) => references).sort(), [
      'docker.io/library/mine:1',
      'docker.io/library/mine:two-layers',
    ])
    await at.images.prune()
    assert.equal((await at.store.blobs.digests()).length, 6)
  })

  it('needs the layers of its image, and asks for no machine without them', async (t) => {
    const at = await imagesOf(t)
    const base = await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    const layer: SandboxLayer = {
      ...layerOf(base, Buffer.alloc(0)),
      pack: async () => assert.fail('a machine was started'),
    }
    at.layers.find = async () => layer
    await at.store.blobs.remove(base.layers[0]?.digest ?? '')
    await assert.rejects(at.images.commit('any', 'mine:2'), hasCode('image-not-found', /layers of .* were pruned/))
    await at.images.remove('mine:1')
    await assert.rejects(at.images.commit('any', 'mine:2'), hasCode('image-not-found', /its image .* was removed/))
    await assert.rejects(at.images.commit('any', 'oci:/x'), hasCode('bad-request'))
    await assert.rejects(at.images.commit('any', 'mine:2', { workingDir: 'x' }), hasCode('bad-request'))
  })
})

describe('the images of a host', { skip }, () => {
  it('are found by reference, id and id prefix', async (t) => {
    const at = await imagesOf(t)
    const image = await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    assert.deepEqual(image.references, ['docker.io/library/mine:1'])
    const prefix = image.id.slice('sha256:'.length, 'sha256:'.length + 12)
    for (const name of ['mine:1', 'docker.io/library/mine:1', image.id, prefix]) {
      assert.equal((await at.images.get(name)).id, image.id)
    }
    await assert.rejects(at.images.get('mine:2'), hasCode('image-not-found', /no image "mine:2" on this host/))
  })

  it('are not fetched when nobody may, nor for another processor', async (t) => {
    const at = await imagesOf(t)
    await assert.rejects(
      at.images.pull('mine:1', { pull: 'never' }),
      hasCode('image-not-found', /mine:1 is not on this host/),
    )
    await assert.rejects(
      at.images.pull('mine:1', { platform: 'linux/s390x' }),
      hasCode('platform-not-found', /cannot run linux\/s390x/),
    )
    await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    assert.equal((await at.images.pull('mine:1', { pull: 'never' })).changed, false)
  })

  it('of the same layers share a disk, however they are packed', async (t) => {
    const at = await imagesOf(t)
    const plain = await rootfs('the same')
    await importFile(at, 'plain.tar', plain, 'plain')
    await importFile(at, 'packed.tar.gz', gzipSync(plain), 'gzip')
    await importFile(at, 'packed.tar.zst', execFileSync('zstd', ['-qc'], { input: plain }), 'zstd')
    assert.equal((await at.store.disks()).length, 1)
    assert.equal((await at.images.remove('plain')).images.length, 0, 'the image has two other names')
    assert.equal((await at.store.disks()).length, 1)
  })

  it('that a sandbox was made from are removed by force alone', async (t) => {
    const at = await imagesOf(t)
    const { id } = await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    at.sandboxes.set(id, ['sbx_one'])
    await assert.rejects(at.images.remove('mine:1'), hasCode('image-in-use', /used by a sandbox: sbx_one/))
    assert.deepEqual((await at.images.prune({ all: true })).images, [])
    const removed = await at.images.remove('mine:1', { force: true })
    assert.deepEqual(removed.images, [id])
    assert.ok(removed.freedBytes > 0)
    for (const kind of ['blobs', 'disks', 'records', 'references', 'locks', 'partial']) {
      assert.deepEqual(await readdir(path.join(at.store.root, kind)), [], kind)
    }
  })

  it('lose by prune what nothing names, and all that is unfinished', async (t) => {
    const at = await imagesOf(t)
    const named = await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    const nameless = await importFile(at, 'b.tar', await rootfs('b'))
    await writeFile(path.join(at.store.root, 'partial', 'a'.repeat(64)), 'the beginning of a layer')
    await writeFile(path.join(at.store.root, 'blobs', 'b'.repeat(64)), 'of an image that was never finished')
    assert.deepEqual((await at.images.prune({ olderThanMs: 60_000 })).images, [])
    assert.deepEqual((await at.images.prune()).images, [nameless.id])
    assert.deepEqual(await readdir(path.join(at.store.root, 'partial')), [])
    assert.equal((await at.store.blobs.digests()).length, 3)
    assert.deepEqual((await at.images.prune({ all: true })).images, [named.id])
  })

  it('are given further names, which share everything', async (t) => {
    const at = await imagesOf(t)
    const image = await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    await at.images.tag('mine:1', 'other.example/mine')
    assert.deepEqual((await at.images.get('other.example/mine:latest')).id, image.id)
    await assert.rejects(at.images.tag('mine:1', 'oci:/tmp'), hasCode('bad-request', /cannot name an image/))
    await assert.rejects(at.images.tag('nobody', 'x'), hasCode('image-not-found', /no image "nobody"/))
    await at.images.remove('mine:1')
    assert.deepEqual((await at.images.get(image.id)).references, ['other.example/mine:latest'])
  })

  it('are not removed while one is being fetched', async (t) => {
    const at = await imagesOf(t)
    await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    const release = await beginFetching(path.join(at.store.root, 'locks'))
    await assert.rejects(at.images.prune(), hasCode('busy', /while one is being fetched/))
    await assert.rejects(at.images.remove('mine:1'), hasCode('busy', /while one is being fetched/))
    await release()
    assert.equal((await at.images.remove('mine:1')).images.length, 1)
  })

  it('of a registry keep to the configured size: layers go first, then what was not used for longest and is not in use', async (t) => {
    const at = await imagesOf(t, { images: { maxBytes: 1_300_000 } })
    const registry = await serveImages(t, { used: 1, old: 2, third: 3, fourth: 4 })
    const pull = async (name: string, events: string[] = []) =>
      (await at.images.pull(`${registry}/${name}:1`, { onEvent: (event) => events.push(event.kind) })).image
    const [used, old] = [await pull('used'), await pull('old')]
    assert.equal((await at.images.get(used.id)).layerBytes, 0, 'its layer went when the second came')
    at.sandboxes.set(used.id, ['sbx_one'])
    await pull('third')
    assert.equal((await at.images.list()).length, 3)
    const events: string[] = []
    await pull('fourth', events)
    assert.equal(events.at(-1), 'evicted')
    const left = (await at.images.list()).flatMap(({ references }) => references)
    assert.deepEqual(left.sort(), ['fourth', 'third', 'used'].map((name) => `${registry}/${name}:1`).sort())
    await assert.rejects(at.images.get(old.id), hasCode('image-not-found', /no image/))
  })

  it('that were imported stay, with their layers, and their names never mean a registry’s', async (t) => {
    const at = await imagesOf(t, { images: { maxBytes: 500_000 } })
    await importFile(at, 'one.tar', await rootfs(noise(400_000, 1)), 'local/one')
    await importFile(at, 'two.tar', await rootfs(noise(400_000, 2)), 'local/two')
    await at.images.prune({ layers: true })
    const infos = await at.images.list()
    assert.deepEqual(
      infos.map(({ layerBytes }) => layerBytes > 400_000),
      [true, true],
    )
    const [{ id }] = infos as [ImageInfo]
    const key = (await at.store.readImage(id))?.disk ?? ''
    await rm((await at.store.findDisk(key))?.path ?? '')
    const name = infos[0]?.references[0] ?? ''
    const release = await at.images.hold()
    await assert.rejects(at.images.obtain(name, {}), hasCode('artifact-damaged', /was imported on this host/))
    await release()
  })

  it('do not lose their name to a file that calls its image the same', async (t) => {
    const at = await imagesOf(t)
    const mine = await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    const other = await imagesOf(t)
    await importFile(other, 'b.tar', await rootfs('b'), 'mine:1')
    await other.images.export('mine:1', path.join(other.folder, 'theirs.tar'))
    const warnings: string[] = []
    const { image } = await at.images.import(path.join(other.folder, 'theirs.tar'), {
      onEvent: (event) => event.kind === 'warning' && warnings.push(event.message),
    })
    assert.deepEqual(image.references, [])
    assert.match(warnings.join(), /calls its image docker\.io\/library\/mine:1, as another one is called here/)
    assert.equal((await at.images.get('mine:1')).id, mine.id)
  })

  it('are imported twice without a word, and those with a damaged disk can be seen and removed', async (t) => {
    const at = await imagesOf(t)
    const image = await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    await at.images.export('mine:1', path.join(at.folder, 'again.tar'))
    const onEvent = ({ kind }: { kind: string }) => assert.notEqual(kind, 'warning')
    assert.equal((await at.images.import(path.join(at.folder, 'again.tar'), { onEvent })).image.id, image.id)
    const key = (await at.store.readImage(image.id))?.disk ?? ''
    await rm((await at.store.findDisk(key))?.path ?? '')
    assert.equal((await at.images.get('mine:1')).diskBytes, 0)
    assert.deepEqual((await at.images.remove('mine:1')).images, [image.id])
    assert.deepEqual([await at.store.images(), await at.store.disks()], [[], []])
  })

  it('are bounded as configured', async (t) => {
    const at = await imagesOf(t, { images: { limits: { maxBytes: 100_000 } } })
    await assert.rejects(
      importFile(at, 'large.tar', await rootfs(noise(200_000, 1)), 'large'),
      hasCode('image-too-large', /over 100000 .*images\.limits\.maxBytes/),
    )
    assert.deepEqual(await at.store.disks(), [])
  })

  it('are exported with their digests, into a tar that can be imported again', async (t) => {
    const at = await imagesOf(t)
    const image = await importFile(at, 'a.tar', await rootfs('a'), 'mine:1')
    await at.images.export('mine:1', path.join(at.folder, 'exported.tar'))
    const other = await imagesOf(t)
    const { image: again, changed } = await other.images.import(path.join(at.folder, 'exported.tar'))
    assert.equal(changed, true)
    assert.deepEqual([again.id, again.digest, again.references], [image.id, image.digest, image.references])
  })

  it('have a name that is told when a configuration is of no use', async (t) => {
    const at = await imagesOf(t, { registries: { 'docker.io': { mirors: [] } } })
    await assert.rejects(
      at.images.get('mine:1'),
      hasCode('bad-request', /config\.json is not what it should be at registries\.docker\.io/),
    )
  })
})
