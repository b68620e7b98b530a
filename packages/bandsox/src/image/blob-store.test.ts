import assert from 'node:assert/strict'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it, type TestContext } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError } from '@bandsox/sdk'
import { hasCode } from '../testing/errors.js'
import { runModule } from '../testing/module-process.js'
import { seededRandom } from '../testing/random.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { BlobStore, type IncomingBlob } from './blob-store.js'
import { digestOf } from './testing/image-corpus.js'
import { described, MemorySource, type MemorySourceOptions, memoryImage, streamOf } from './testing/memory-image.js'

const blob = seededRandom(1).bytes(300_000)
const descriptor = described(blob, 'x')
const hex = descriptor.digest.slice('sha256:'.length)
const half = blob.length / 2

async function openStore(t: TestContext): Promise<{ store: BlobStore; root: string }> {
  const root = await temporaryFolder(t)
  const store = new BlobStore(root)
  await store.open()
  return { store, root }
}

const sourceOf = (open?: MemorySourceOptions['open']) =>
  new MemorySource({ ...memoryImage([]), blobs: new Map([[descriptor.digest, blob]]) }, open && { open })

async function bytesOf(incoming: IncomingBlob | AsyncIterable<Buffer>): Promise<Buffer> {
  const parts: Buffer[] = []
  for await (const part of 'read' in incoming ? incoming.read() : incoming) parts.push(part)
  return Buffer.concat(parts)
}

/** Some bytes, and then a connection that breaks. */
async function* broken(bytes: Buffer): AsyncGenerator<Buffer> {
  yield bytes
  throw new BandSoxError('registry-failed', 'the connection broke')
}

const leftIn = async (root: string) => [
  ...(await readdir(join(root, 'partial'))),
  ...(await readdir(join(root, 'locks'))),
]

it('a blob is read as it comes, and kept under its digest', async (t) => {
  const { store, root } = await openStore(t)
  const source = sourceOf()
  const incoming = store.fetch(descriptor, source)
  assert.deepEqual(await bytesOf(incoming), blob)
  await incoming.done
  assert.deepEqual(await readFile(store.pathOf(descriptor.digest)), blob)
  assert.deepEqual(await store.digests(), [descriptor.digest])
  assert.deepEqual(await leftIn(root), [])
  assert.deepEqual(await bytesOf(store.fetch(descriptor, source)), blob)
  assert.deepEqual(await bytesOf(store.read(descriptor.digest)), blob)
  assert.equal(source.opened.length, 1)
})

it('a reader has the first bytes before the last have come, and not the end before all is verified', async (t) => {
  const { store } = await openStore(t)
  let goOn: () => void = () => undefined
  const told = new Promise<void>((resolve) => {
    goOn = resolve
  })
  async function* slow(): AsyncGenerator<Buffer> {
    yield blob.subarray(0, half)
    await told
    yield blob.subarray(half)
  }
  const incoming = store.fetch(
    descriptor,
    sourceOf(() => ({ stream: streamOf(slow()), startsAt: 0 })),
  )
  const reader = incoming.read()
  assert.deepEqual((await reader.next()).value, blob.subarray(0, half))
  assert.equal(await store.sizeOf(descriptor.digest), undefined)
  goOn()
  assert.deepEqual((await reader.next()).value, blob.subarray(half))
  assert.equal((await reader.next()).done, true)
  assert.equal(await store.sizeOf(descriptor.digest), blob.length)
})

it('a broken connection is taken up where it broke', async (t) => {
  const { store } = await openStore(t)
  const source = sourceOf((_, offset) =>
    offset === 0 ? { stream: streamOf(broken(blob.subarray(0, half))), startsAt: 0 } : undefined,
  )
  assert.deepEqual(await bytesOf(store.fetch(descriptor, source)), blob)
  assert.deepEqual(
    source.opened.map(({ offset }) => offset),
    [0, half],
  )
})

it('a source that can only begin at the beginning gives a slow reader the same bytes', async (t) => {
  const { store } = await openStore(t)
  let attempts = 0
  async function* twice(): AsyncGenerator<Buffer> {
    attempts++
    if (attempts === 2) await delay(100) // what came before is gone, and the reader asks for it
    yield blob.subarray(0, 1000)
    await delay(20)
    yield* attempts === 1 ? broken(blob.subarray(1000, half)) : [blob.subarray(1000)]
  }
  const incoming = store.fetch(
    descriptor,
    sourceOf(() => ({ stream: streamOf(twice()), startsAt: 0 })),
  )
  const reader = incoming.read()
  const first = await reader.next()
  while (attempts < 2) await delay(5)
  const rest: Buffer[] = []
  for await (const piece of reader) rest.push(piece)
  assert.deepEqual(Buffer.concat([first.value ?? Buffer.alloc(0), ...rest]), blob)
})

it('what a killed process left is taken up', async (t) => {
  const { store, root } = await openStore(t)
  await writeFile(join(root, 'partial', hex), blob.subarray(0, half))
  const source = sourceOf()
  const progress: number[] = []
  const incoming = store.fetch(descriptor, source, { onProgress: (bytes) => progress.push(bytes) })
  assert.deepEqual(await bytesOf(incoming), blob)
  assert.deepEqual(
    source.opened.map(({ offset }) => offset),
    [half],
  )
  assert.deepEqual([progress[0], progress.at(-1)], [half, blob.length])
})

it('what a killed process left whole is fetched no more', async (t) => {
  const { store, root } = await openStore(t)
  await writeFile(join(root, 'partial', hex), blob)
  const source = sourceOf()
  assert.deepEqual(await bytesOf(store.fetch(descriptor, source)), blob)
  assert.deepEqual(source.opened, [])
})

for (const [what, left] of [
  ['of wrong content', Buffer.alloc(half)],
  ['of wrong content and whole length', Buffer.alloc(blob.length)],
  ['longer than the blob', Buffer.alloc(blob.length + 1)],
] as const) {
  it(`what a killed process left ${what} is fetched once more from the beginning, and the reader sees nothing of it`, async (t) => {
    const { store, root } = await openStore(t)
    await writeFile(join(root, 'partial', hex), left)
    const source = sourceOf()
    assert.deepEqual(await bytesOf(store.fetch(descriptor, source)), blob)
    assert.equal(source.opened.at(-1)?.offset, 0)
    assert.deepEqual(await leftIn(root), [])
  })
}

it('a source that lies is asked twice after a partial file, once without, and nothing of it is kept', async (t) => {
  const { store, root } = await openStore(t)
  await writeFile(join(root, 'partial', hex), blob.subarray(0, half))
  const liar = sourceOf((_, offset) => ({ stream: streamOf([Buffer.alloc(blob.length - offset)]), startsAt: offset }))
  await assert.rejects(
    store.fetch(descriptor, liar).done,
    hasCode('digest-mismatch', /what came as sha256:.* has the digest/),
  )
  assert.deepEqual(
    liar.opened.map(({ offset }) => offset),
    [half, 0],
  )
  await assert.rejects(bytesOf(store.fetch(descriptor, liar)), hasCode('digest-mismatch'))
  assert.equal(liar.opened.length, 3)
  assert.deepEqual(await leftIn(root), [])
  assert.equal(await store.sizeOf(descriptor.digest), undefined)
})

it('a blob that is longer than announced is cut off there, and not kept', async (t) => {
  const { store, root } = await openStore(t)
  let given = 0
  function* endless(): Generator<Buffer> {
    for (; ; given++) yield Buffer.alloc(100_000)
  }
  const source = sourceOf(() => ({ stream: streamOf(endless()), startsAt: 0 }))
  await assert.rejects(store.fetch(descriptor, source).done, hasCode('digest-mismatch', /has over 300000 bytes/))
  assert.ok(given < 20, `${given} pieces were read`)
  assert.deepEqual(await leftIn(root), [])
})

it('a blob that is shorter than announced is not asked for again, and not kept', async (t) => {
  const { store, root } = await openStore(t)
  const source = sourceOf((_, offset) => ({ stream: streamOf([blob.subarray(offset, half)]), startsAt: offset }))
  await assert.rejects(
    store.fetch(descriptor, source).done,
    hasCode('digest-mismatch', /has only 150000 of the 300000 bytes that were announced/),
  )
  assert.equal(source.opened.length, 1)
  assert.deepEqual(await leftIn(root), [])
})

it('a source that gives a byte and breaks off is asked a few times, and what came is kept', async (t) => {
  const { store, root } = await openStore(t)
  const source = sourceOf((_, offset) => ({
    stream: streamOf(broken(blob.subarray(offset, offset + 1))),
    startsAt: offset,
  }))
  await assert.rejects(store.fetch(descriptor, source).done, hasCode('registry-failed', /the connection broke/))
  assert.equal(source.opened.length, 4)
  assert.deepEqual(await leftIn(root), [hex])
})

it('a source that breaks off again and again is asked on as long as it gives enough', async (t) => {
  const { store } = await openStore(t)
  const piece = 1024 * 1024
  const large = seededRandom(2).bytes(6 * piece)
  const source = new MemorySource(
    { ...memoryImage([]), blobs: new Map([[digestOf(large), large]]) },
    {
      open: (_, offset) => ({
        stream: streamOf(broken(large.subarray(offset, offset + piece))),
        startsAt: offset,
      }),
    },
  )
  await store.fetch(described(large, 'x'), source).done
  assert.equal(source.opened.length, 6)
})

it('a pause between two attempts ends with the reason of the signal', async (t) => {
  const { store } = await openStore(t)
  const cancel = new AbortController()
  const reason = new Error('enough')
  const source = sourceOf((_, startsAt) => {
    setTimeout(() => cancel.abort(reason), 50)
    return { stream: streamOf(broken(Buffer.alloc(0))), startsAt }
  })
  await assert.rejects(store.fetch(descriptor, source, { signal: cancel.signal }).done, (error) => error === reason)
  assert.equal(source.opened.length, 1)
})

it('a blob that is there with another size than announced is none', async (t) => {
  const { store } = await openStore(t)
  await store.fetch(descriptor, sourceOf()).done
  const other = { ...descriptor, size: descriptor.size + 1 }
  await assert.rejects(
    store.fetch(other, sourceOf()).done,
    hasCode('digest-mismatch', /has 300000 bytes, and 300001 were/),
  )
})

it('two fetches at once share one download', async (t) => {
  const { store, root } = await openStore(t)
  const source = sourceOf()
  const waited: number[] = []
  const both = [0, 1].map(() => store.fetch(descriptor, source, { onWait: ({ pid }) => waited.push(pid) }))
  for (const incoming of both) assert.deepEqual(await bytesOf(incoming), blob)
  assert.equal(source.opened.length, 1)
  assert.deepEqual(waited, [process.pid])
  assert.deepEqual(await leftIn(root), [])
})

it('a fetch ends when it is cancelled, also while it waits for another, and keeps what came', async (t) => {
  const { store, root } = await openStore(t)
  async function* stalled(signal?: AbortSignal): AsyncGenerator<Buffer> {
    yield blob.subarray(0, half)
    await delay(60_000, undefined, { signal })
  }
  const source = sourceOf((_, startsAt, signal) => ({ stream: streamOf(stalled(signal)), startsAt }))
  const cancel = new AbortController()
  const first = store.fetch(descriptor, source, { signal: cancel.signal })
  const reader = first.read()
  await reader.next()
  await reader.return(undefined)
  const waiting = new AbortController()
  const second = store.fetch(descriptor, source, {
    signal: waiting.signal,
    onWait: () => waiting.abort(new Error('no more')),
  })
  await assert.rejects(second.done, /no more/)
  cancel.abort(new Error('enough'))
  await assert.rejects(bytesOf(first), /enough/)
  assert.deepEqual(await leftIn(root), [hex])
})

it('a blob that a killed process was fetching is taken over with what it had', async (t) => {
  const { store, root } = await openStore(t)
  const { child, printed } = runModule(
    t,
    import.meta.url,
    `const { BlobStore } = await import(url('./blob-store.js'))
    const { Readable } = await import('node:stream')
    const store = new BlobStore(args[0])
    async function* some() { yield Buffer.from(args[2], 'base64'); await new Promise((done) => setTimeout(done, 60_000)) }
    const source = { openBlob: async () => ({ stream: Readable.from(some()), startsAt: 0 }) }
    store.fetch(JSON.parse(args[1]), source, { onProgress: (bytes) => { if (bytes > 0) console.log('begun') } })
    `,
    [root, JSON.stringify(descriptor), blob.subarray(0, 1000).toString('base64')],
  )
  await printed('begun')
  const source = sourceOf()
  const incoming = store.fetch(descriptor, source, {
    onWait: ({ pid }) => void (pid === child.pid && child.kill('SIGKILL')),
  })
  assert.deepEqual(await bytesOf(incoming), blob)
  assert.deepEqual(
    source.opened.map(({ offset }) => offset),
    [1000],
  )
  assert.deepEqual(await leftIn(root), [])
})

it('documents are kept, and one that is missing or too large says so', async (t) => {
  const { store } = await openStore(t)
  const document = Buffer.from('{}')
  await store.writeDocument(digestOf(document), document)
  await store.writeDocument(digestOf(document), document)
  assert.deepEqual(await store.readDocument(digestOf(document)), document)
  assert.equal(await store.remove(digestOf(document)), 2)
  assert.equal(await store.remove(digestOf(document)), 0)
  await assert.rejects(
    store.readDocument(digestOf(document)),
    hasCode('artifact-damaged', /is missing, or no document/),
  )
  await assert.rejects(bytesOf(store.read(digestOf(document))), hasCode('artifact-damaged', /is missing/))
})
