import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { it } from 'node:test'
import { gzipSync } from 'node:zlib'
import { openDescriptors } from '../../testing/descriptors.js'
import { hasCode } from '../../testing/errors.js'
import { seededRandom } from '../../testing/random.js'
import { decompress } from './decompress.js'

const bytes = seededRandom(3).bytes(2_000_000)
const zstd = execFileSync('zstd', ['-qc'], { input: bytes, maxBuffer: 10_000_000 })

/** A download that stops in the middle, until `left` is called. */
function stalled(start: Buffer): { source: AsyncGenerator<Buffer>; left: () => void } {
  let left: () => void = () => undefined
  const waiting = new Promise<void>((resolve) => {
    left = resolve
  })
  async function* source(): AsyncGenerator<Buffer> {
    yield start
    await waiting
  }
  return { source: source(), left: () => left() }
}

for (const [kind, packed] of [
  ['gzip', gzipSync(bytes)],
  ['zstd', zstd],
  ['nothing', bytes],
] as const) {
  it(`what is packed with ${kind} is unpacked`, async () => {
    async function* source(): AsyncGenerator<Buffer> {
      yield packed
    }
    const parts: Buffer[] = []
    for await (const part of decompress(source())) parts.push(part)
    assert.deepEqual(Buffer.concat(parts), bytes)
  })
}

it('zstd that is cut short says so', async () => {
  async function* source(): AsyncGenerator<Buffer> {
    yield zstd.subarray(0, 1000)
  }
  await assert.rejects(
    async () => {
      for await (const _ of decompress(source()));
    },
    hasCode('layer-invalid', /zstd: /),
  )
})

it('zstd that waits for more ends with the reason of the signal, and leaves no descriptor', async () => {
  const before = await openDescriptors()
  const cancel = new AbortController()
  const reason = new Error('enough')
  const { source, left } = stalled(zstd.subarray(0, 1_000_000))
  setTimeout(() => cancel.abort(reason), 100)
  await assert.rejects(
    async () => {
      for await (const _ of decompress(source, cancel.signal));
    },
    (error) => error === reason,
  )
  left()
  const again = decompress(stalled(zstd).source, AbortSignal.abort(reason))
  await assert.rejects(again.next(), (error) => error === reason)
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.deepEqual(await openDescriptors(), before)
})
