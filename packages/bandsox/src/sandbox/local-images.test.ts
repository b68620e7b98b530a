import assert from 'node:assert/strict'
import { execFileSync, spawnSync } from 'node:child_process'
import { readdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { buffer } from 'node:stream/consumers'
import { describe, it } from 'node:test'
import { gzipSync } from 'node:zlib'
import { pack } from 'tar-stream'
import { beginFetching } from '../image/activity.js'
import { ImageStore } from '../image/image-store.js'
import { hasCode } from '../testing/errors.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { LocalImages } from './local-images.js'

const skip =
  spawnSync('sqfstar', ['-version']).error === undefined ? false : 'sqfstar (squashfs-tools 4.5) is not installed'

/** Images of a folder of their own, with the sandboxes that a test says there are. */
async function imagesOf(t: TestScope, configuration?: unknown) {
  const folder = await temporaryFolder(t)
  const configFile = path.join(folder, 'config.json')
  if (configuration !== undefined) await writeFile(configFile, JSON.stringify(configuration))
  const sandboxes = new Map<string, string[]>()
  const store = new ImageStore(path.join(folder, 'images'))
  const images = new LocalImages({
    store,
    settings: { configFile, credentialSources: { files: [], environment: {} }, proxy: {} },
    sandboxesByImage: async () => sandboxes,
    debug: () => undefined,
  })
  return { folder, images, store, sandboxes }
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
    assert.ok(named.layerBytes > 0)
    await at.images.prune({ layers: true })
    assert.equal((await at.images.get('mine:1')).layerBytes, 0)
    assert.deepEqual((await at.images.prune({ all: true })).images, [named.id])
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

  it('keep to the configured size: layers go first, then what was not used for longest and is not in use', async (t) => {
    const at = await imagesOf(t, { images: { maxBytes: 1_300_000 } })
    const [used, old] = [
      await importFile(at, 'used.tar', await rootfs(noise(400_000, 1)), 'used'),
      await importFile(at, 'old.tar', await rootfs(noise(400_000, 2)), 'old'),
    ]
    assert.equal((await at.images.get('used')).layerBytes, 0, 'its layer went when the second came')
    at.sandboxes.set(used.id, ['sbx_one'])
    await importFile(at, 'third.tar', await rootfs(noise(400_000, 3)), 'third')
    assert.equal((await at.images.list()).length, 3)
    await importFile(at, 'fourth.tar', await rootfs(noise(400_000, 4)), 'fourth')
    const left = (await at.images.list()).flatMap(({ references }) => references)
    assert.deepEqual(left.sort(), ['fourth', 'third', 'used'].map((name) => `docker.io/library/${name}:latest`).sort())
    await assert.rejects(at.images.get(old.id), hasCode('image-not-found', /no image/))
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
