import assert from 'node:assert/strict'
import { PassThrough, Readable } from 'node:stream'
import { test } from 'node:test'
import { setImmediate } from 'node:timers/promises'
import { gather } from './gather.js'

test('what comes alone is there at once', async () => {
  const stream = new PassThrough()
  const pieces = gather(stream, 1000)
  stream.write('one')
  assert.deepEqual((await pieces.next()).value, Buffer.from('one'))
  stream.end('two')
  assert.deepEqual((await pieces.next()).value, Buffer.from('two'))
  assert.equal((await pieces.next()).done, true)
})

test('what comes while the reader is busy is one piece, up to the limit', async () => {
  const parts = Array.from({ length: 100 }, (_, index) => Buffer.alloc(10, index))
  const sizes: number[] = []
  const all: Buffer[] = []
  for await (const piece of gather(Readable.from(parts, { objectMode: false, highWaterMark: 10 }), 50)) {
    sizes.push(piece.length)
    all.push(piece)
    for (let turn = 0; turn < 200; turn++) await setImmediate()
  }
  assert.deepEqual(Buffer.concat(all), Buffer.concat(parts))
  assert.ok(Math.max(...sizes) >= 50 && Math.max(...sizes) <= 60, sizes.join())
})

test('a failure comes after what came before it', async () => {
  const stream = new PassThrough()
  const pieces = gather(stream, 1000)
  stream.write('one')
  assert.deepEqual((await pieces.next()).value, Buffer.from('one'))
  stream.write('two')
  await setImmediate()
  stream.destroy(new Error('broken'))
  assert.deepEqual((await pieces.next()).value, Buffer.from('two'))
  await assert.rejects(pieces.next(), /broken/)
})

test('a stream that fails before anybody reads has failed', async () => {
  for (const isLate of [false, true]) {
    const stream = new PassThrough()
    stream.on('error', () => undefined)
    const early = isLate ? undefined : gather(stream, 1000)
    stream.destroy(new Error('broken'))
    for (let turn = 0; turn < 5; turn++) await setImmediate()
    await assert.rejects((early ?? gather(stream, 1000)).next(), /broken/)
  }
})

test('a stream that is closed without a word has not ended', async () => {
  const stream = new PassThrough()
  const next = gather(stream, 1000).next()
  stream.destroy()
  await assert.rejects(next, /closed before its end/)
})

test('a reader that leaves early destroys the stream', async () => {
  const stream = new PassThrough()
  stream.write('one')
  for await (const _ of gather(stream, 1000)) break
  assert.equal(stream.destroyed, true)
})
