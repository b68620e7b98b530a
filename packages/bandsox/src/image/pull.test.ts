import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { readdir } from 'node:fs/promises'
import { join } from 'node:path'
import { describe, it, type TestContext } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import type { ErrorCode, ImageEvent } from '@bandsox/sdk'
import { hasCode } from '../testing/errors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { diskKey, ImageStore } from './image-store.js'
import { DEFAULT_LIMITS } from './layer/limits.js'
import { mediaTypes } from './manifest.js'
import { type PullImageOptions, pullImage } from './pull.js'
import { digestOf } from './testing/image-corpus.js'
import {
  described,
  documentOf,
  json,
  type MemoryImage,
  MemorySource,
  type MemorySourceOptions,
  memoryImage,
  streamOf,
} from './testing/memory-image.js'
import { file, gzip, tar } from './testing/tar-builder.js'

const skip =
  spawnSync('sqfstar', ['-version']).error === undefined
    ? false
    : 'sqfstar is not installed: apt-get install squashfs-tools'
const amd64 = { os: 'linux', architecture: 'amd64' }
const [lower, upper] = [tar(file('a', 'low'), file('b', '1')), tar(file('a', 'high'))]

async function openStore(t: TestContext): Promise<ImageStore> {
  const store = new ImageStore(await temporaryFolder(t))
  await store.open()
  return store
}

const pull = (store: ImageStore, source: MemorySource, over: Partial<PullImageOptions> = {}) =>
  pullImage({
    ...{ store, source, reference: 'example.org/app:1', origin: 'registry' as const },
    ...{ platform: amd64, limits: DEFAULT_LIMITS },
    ...over,
  })

const locksOf = (store: ImageStore) => readdir(join(store.root, 'locks'))

describe('a pull', { skip }, () => {
  it('fetches an image, makes its disk, and says how far it is', async (t) => {
    const store = await openStore(t)
    const events: ImageEvent[] = []
    const pulled = memoryImage([lower, upper])
    const { image, changed } = await pull(store, new MemorySource(pulled), { onEvent: (event) => events.push(event) })
    assert.equal(changed, true)
    assert.equal(image.id, digestOf(pulled.configuration))
    assert.deepEqual(image.config.env, ['A=b'])
    assert.deepEqual(image.diffIds, [lower, upper].map(digestOf))
    assert.deepEqual(await store.readImage(image.id), image)
    assert.equal((await store.readReference('example.org/app:1'))?.image, image.id)
    assert.ok((await store.findDisk(image.disk))?.path)
    assert.deepEqual(await locksOf(store), [])
    const kinds = events.map((event) => ('phase' in event ? `${event.kind} ${event.phase}` : event.kind))
    assert.deepEqual(kinds.slice(0, 2), ['resolving', 'resolved'])
    assert.equal(kinds.filter((kind) => kind === 'layer ready').length, 2)
    assert.equal(kinds.at(-1), 'disk ready')
  })

  it('of an image that is there fetches nothing and changes nothing', async (t) => {
    const store = await openStore(t)
    const source = new MemorySource(memoryImage([lower, upper]))
    const first = await pull(store, source)
    const opened = source.opened.length
    const { image, changed } = await pull(store, source)
    assert.equal(changed, false)
    assert.deepEqual(image.id, first.image.id)
    assert.equal(source.opened.length, opened)
  })

  it('of the same layers by another name, or packed otherwise, shares the disk', async (t) => {
    const store = await openStore(t)
    const one = await pull(store, new MemorySource(memoryImage([lower])), { reference: 'one' })
    const source = new MemorySource(memoryImage([gzip(lower)], { diffIds: [digestOf(lower)], config: { config: {} } }))
    const two = await pull(store, source, { reference: 'two' })
    assert.notEqual(one.image.id, two.image.id)
    assert.equal(one.image.disk, two.image.disk)
    assert.equal(two.changed, true)
    assert.deepEqual(await store.disks(), [diskKey([digestOf(lower)])])
    assert.equal(source.opened.length, 1, 'only its configuration')
    assert.equal((await store.references()).length, 2)
  })

  it('of a tag that moved gives the new image, and keeps the old one', async (t) => {
    const store = await openStore(t)
    const before = await pull(store, new MemorySource(memoryImage([lower])))
    const after = await pull(store, new MemorySource(memoryImage([lower, upper])))
    assert.equal(after.changed, true)
    assert.notEqual(after.image.id, before.image.id)
    assert.equal((await store.readReference('example.org/app:1'))?.image, after.image.id)
    assert.equal((await store.images()).length, 2)
  })

  it('without a name to keep leaves none', async (t) => {
    const store = await openStore(t)
    await pull(store, new MemorySource(memoryImage([lower])), { keepReference: false })
    assert.deepEqual(await store.references(), [])
  })

  it('by two at once fetches each blob once, and makes one disk', async (t) => {
    const store = await openStore(t)
    const source = new MemorySource(memoryImage([lower, upper]))
    const both = await Promise.all([pull(store, source), pull(store, source, { reference: 'two' })])
    assert.equal(both[0].image.id, both[1].image.id)
    assert.equal(source.opened.length, 3)
    assert.deepEqual(await locksOf(store), [])
  })

  it('of an image with the same layer twice, and with none, works', async (t) => {
    const store = await openStore(t)
    await pull(store, new MemorySource(memoryImage([lower, lower, upper])), { reference: 'twice' })
    await pull(store, new MemorySource(memoryImage([])), { reference: 'none' })
    assert.equal((await store.disks()).length, 2)
  })

  it('chooses by platform from an index', async (t) => {
    const store = await openStore(t)
    const image = memoryImage([lower])
    const manifest = described(image.manifest, mediaTypes.ociManifest)
    const index = json({
      schemaVersion: 2,
      manifests: [
        { ...manifest, digest: `sha256:${'0'.repeat(64)}`, platform: { os: 'linux', architecture: 'arm64' } },
        { ...manifest, platform: amd64 },
      ],
    })
    const source = () => new MemorySource(image, { root: () => documentOf(index, mediaTypes.ociIndex) })
    assert.equal((await pull(store, source())).image.id, digestOf(image.configuration))
    await assert.rejects(
      pull(store, source(), { platform: { os: 'linux', architecture: 's390x' } }),
      hasCode('platform-not-found', /no image for linux\/s390x, but for linux\/arm64, linux\/amd64/),
    )
  })

  it('that one layer ends has ended all others, and leaves no lock and no disk', async (t) => {
    const store = await openStore(t)
    const hostile = tar(file('../../etc/passwd'))
    const image = memoryImage([lower, hostile, upper])
    let isStopped = false
    async function* stalled(signal?: AbortSignal): AsyncGenerator<Buffer> {
      yield upper.subarray(0, 10)
      try {
        await delay(60_000, undefined, { signal })
      } finally {
        isStopped = true
      }
    }
    const source = new MemorySource(image, {
      open: ({ digest }, startsAt, signal) =>
        digest === digestOf(upper) ? { stream: streamOf(stalled(signal)), startsAt } : undefined,
    })
    const attempt = pull(store, source)
    await assert.rejects(attempt, hasCode('layer-hostile', new RegExp(`layer ${digestOf(hostile)}: .*leads out`)))
    assert.equal(isStopped, true)
    assert.deepEqual(await locksOf(store), [])
    assert.deepEqual(await readdir(join(store.root, 'disks')), [])
    assert.deepEqual(await store.images(), [])
    assert.deepEqual(await store.references(), [])
  })

  it('fails at once when a layer is hostile whose rest does not come', { timeout: 5_000 }, async (t) => {
    const store = await openStore(t)
    const hostile = gzip(tar(file('../../etc/passwd'), file('rest', randomBytes(400_000))))
    async function* stalled(signal?: AbortSignal): AsyncGenerator<Buffer> {
      yield hostile.subarray(0, 350_000)
      await delay(60_000, undefined, { signal })
    }
    const source = new MemorySource(memoryImage([hostile]), {
      open: ({ digest }, startsAt, signal) =>
        digest === digestOf(hostile) ? { stream: streamOf(stalled(signal)), startsAt } : undefined,
    })
    await assert.rejects(pull(store, source), hasCode('layer-hostile'))
    assert.deepEqual(await locksOf(store), [])
  })

  it('is cancelled while it fetches, leaves no lock, and goes on where it was the next time', async (t) => {
    const store = await openStore(t)
    const image = memoryImage([lower, upper])
    const cancel = new AbortController()
    async function* stalled(signal?: AbortSignal): AsyncGenerator<Buffer> {
      yield lower.subarray(0, 600)
      setTimeout(() => cancel.abort(new Error('enough')), 50)
      await delay(60_000, undefined, { signal })
    }
    const source = new MemorySource(image, {
      open: ({ digest }, startsAt, signal) =>
        digest === digestOf(lower) ? { stream: streamOf(stalled(signal)), startsAt } : undefined,
    })
    await assert.rejects(pull(store, source, { signal: cancel.signal }), /enough/)
    assert.deepEqual(await locksOf(store), [])
    const again = new MemorySource(image)
    await pull(store, again)
    assert.deepEqual(again.opened, [{ digest: digestOf(lower), offset: 600 }])
  })

  it('is not begun when it is cancelled before', async (t) => {
    const store = await openStore(t)
    const signal = AbortSignal.abort(new Error('before'))
    await assert.rejects(pull(store, new MemorySource(memoryImage([lower])), { signal }), /before/)
    assert.deepEqual(await locksOf(store), [])
  })

  it('warns of at most 20 oddities', async (t) => {
    const store = await openStore(t)
    const odd = Array.from({ length: 50 }, (_, index) =>
      file(`f${index}`, '', { pax: [['SCHILY.xattr.system.x', 'y']] }),
    )
    const warnings: ImageEvent[] = []
    await pull(store, new MemorySource(memoryImage([tar(...odd)])), {
      onEvent: (event) => void (event.kind === 'warning' && warnings.push(event)),
    })
    assert.equal(warnings.length, 20)
  })
})

/** What a publisher can lie about, beyond what is in a layer. */
const lies: {
  name: string
  image: MemoryImage
  options?: MemorySourceOptions
  limits?: object
  code: ErrorCode
  message: RegExp
}[] = [
  {
    name: 'a layer with another digest than it says',
    image: {
      ...memoryImage([lower]),
      blobs: new Map([...memoryImage([lower]).blobs, [digestOf(lower), tar(file('a', 'LOW'), file('b', '1'))]]),
    },
    code: 'digest-mismatch',
    message: /what came as sha256:/,
  },
  {
    name: 'a larger size than a layer has',
    image: memoryImage([lower], { descriptors: [{ size: lower.length + 1 }] }),
    code: 'digest-mismatch',
    message: /has only 3072 of the 3073 bytes/,
  },
  {
    name: 'a smaller size than a layer has',
    image: memoryImage([lower], { descriptors: [{ size: 100 }] }),
    code: 'digest-mismatch',
    message: /has over 100 bytes/,
  },
  {
    name: 'another digest of an unpacked layer',
    image: memoryImage([lower], { diffIds: [digestOf(upper)] }),
    code: 'digest-mismatch',
    message: /configuration says/,
  },
  {
    name: 'digests of unpacked layers in another order',
    image: memoryImage([lower, upper], { diffIds: [digestOf(upper), digestOf(lower)] }),
    code: 'digest-mismatch',
    message: /configuration says/,
  },
  {
    name: 'fewer digests than layers',
    image: memoryImage([lower, upper], { diffIds: [digestOf(lower)] }),
    code: 'image-invalid',
    message: /2 layers in its manifest, and 1 in its configuration/,
  },
  {
    name: 'more digests than layers',
    image: memoryImage([lower], { diffIds: [digestOf(lower), digestOf(upper)] }),
    code: 'image-invalid',
    message: /1 layers in its manifest, and 2/,
  },
  {
    name: 'more layers than it may',
    image: memoryImage([lower, upper]),
    limits: { maxLayers: 1 },
    code: 'image-too-large',
    message: /2 layers, over 1/,
  },
  {
    name: 'more packed bytes than it may',
    image: memoryImage([lower], { descriptors: [{ size: 2 ** 40 }] }),
    code: 'image-too-large',
    message: /bytes even as it is packed/,
  },
  {
    name: 'another platform in its configuration',
    image: memoryImage([lower], { config: { architecture: 'arm64' } }),
    code: 'platform-not-found',
    message: /is for linux\/arm64, and not for linux\/amd64/,
  },
  {
    name: 'a platform that is none',
    image: memoryImage([lower], { config: { architecture: '../x' } }),
    code: 'image-invalid',
    message: /at architecture/,
  },
  {
    name: 'a digest of another algorithm',
    image: memoryImage([lower], { descriptors: [{ digest: `md5:${'0'.repeat(32)}` }] }),
    code: 'image-invalid',
    message: /layers\.0\.digest/,
  },
  {
    name: 'a negative size',
    image: memoryImage([lower], { descriptors: [{ size: -1 }] }),
    code: 'image-invalid',
    message: /layers\.0\.size/,
  },
  {
    name: 'the first schema',
    image: { ...memoryImage([lower]), manifest: json({ schemaVersion: 1, fsLayers: [] }) },
    code: 'image-invalid',
    message: /of the first schema/,
  },
  {
    name: 'a manifest and an index at once',
    image: {
      ...memoryImage([lower]),
      manifest: json({ ...JSON.parse(memoryImage([lower]).manifest.toString()), manifests: [] }),
    },
    code: 'image-invalid',
    message: /manifest and an index at once/,
  },
  {
    name: 'layers in an index',
    image: { ...memoryImage([lower]), manifest: json({ schemaVersion: 2, manifests: [], layers: [] }) },
    code: 'image-invalid',
    message: /manifest and an index at once/,
  },
  {
    name: 'a manifest that is no JSON',
    image: { ...memoryImage([lower]), manifest: Buffer.from('<html>') },
    code: 'image-invalid',
    message: /is no JSON/,
  },
  nestedIndex(),
  {
    name: 'a configuration of 5 MiB',
    image: {
      ...memoryImage([]),
      manifest: json({
        schemaVersion: 2,
        config: { mediaType: 'x', digest: digestOf(lower), size: 5 * 2 ** 20 },
        layers: [],
      }),
    },
    code: 'image-invalid',
    message: /its configuration has 5242880 bytes/,
  },
]

function nestedIndex(): (typeof lies)[number] {
  const inner = json({ schemaVersion: 2, manifests: [] })
  const outer = json({ schemaVersion: 2, manifests: [{ ...described(inner, mediaTypes.ociIndex), platform: amd64 }] })
  const options = { root: () => documentOf(outer, mediaTypes.ociIndex), manifests: [inner] }
  return {
    name: 'an index in its index',
    image: memoryImage([]),
    options,
    code: 'image-invalid',
    message: /an index in its index/,
  }
}

describe(`${lies.length} images that lie`, () => {
  for (const { name, image, options, limits, code, message } of lies) {
    it(`is refused with ${name}`, async (t) => {
      const store = await openStore(t)
      const attempt = pull(store, new MemorySource(image, options), { limits: { ...DEFAULT_LIMITS, ...limits } })
      await assert.rejects(attempt, hasCode(code, message))
      assert.deepEqual(await locksOf(store), [])
      assert.deepEqual([await store.images(), await store.references(), await store.disks()], [[], [], []])
    })
  }
})
