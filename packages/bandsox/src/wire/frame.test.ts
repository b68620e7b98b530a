import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { type Random, seededRandom } from '../testing/random.js'
import { type BulkKind, encodeHeader, encodeMessage, FrameDecoder, MAX_BULK_BYTES, MAX_MESSAGE_BYTES } from './frame.js'
import type { Direction, ToGuest, ToHost } from './message.js'
import { ProtocolError } from './protocol-error.js'

const violation = (name: string) => (error: unknown) => error instanceof ProtocolError && error.violation === name

type Sent = { kind: 'message'; message: ToHost | ToGuest } | { kind: BulkKind; data: Buffer }

function encode(frame: Sent): Buffer {
  if (frame.kind === 'message') return encodeMessage(frame.message)
  return Buffer.concat([encodeHeader(frame.kind, frame.data.length), frame.data])
}

function randomText(random: Random): string {
  const letters = ['a', '"', '\\', '{', '[', '}', ']', '/', '\n', 'é', '漢', '😀', ' 1.5 ', '-0', '1e3']
  return Array.from({ length: random.below(40) }, () => random.pick(letters)).join('')
}

function randomToHost(random: Random): Sent {
  const number = () => random.pick([0, 1, 255, 4_096, 2 ** 31, Number.MAX_SAFE_INTEGER])
  const bulk = (kind: BulkKind): Sent => ({ kind, data: random.bytes(1 + random.below(3_000)) })
  return random.pick<() => Sent>([
    () => bulk('data'),
    () => bulk('stdout'),
    () => bulk('stderr'),
    () => ({ kind: 'message', message: { type: 'pong', uptimeMs: number() } }),
    () => ({ kind: 'message', message: { type: 'ack', offset: number() } }),
    () => ({ kind: 'message', message: { type: 'error', code: 'internal', message: randomText(random) } }),
    () => ({ kind: 'message', message: { type: 'exit', signal: 'SIGKILL', timedOut: true } }),
    () => ({ kind: 'message', message: { type: 'complete', size: number(), checksum: '44bc2cf5ad770999' } }),
    () => {
      const file = {
        name: randomText(random),
        type: 'file',
        size: number(),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtimeMs: -5,
      } as const
      return {
        kind: 'message',
        message: { type: 'entries', files: Array.from({ length: 1 + random.below(20) }, () => file) },
      }
    },
  ])()
}

function randomToGuest(random: Random): Sent {
  return random.pick<() => Sent>([
    () => ({ kind: 'data', data: random.bytes(1 + random.below(3_000)) }),
    () => ({ kind: 'message', message: { type: 'ping' } }),
    () => ({ kind: 'message', message: { type: 'signal', signal: 'SIGTERM' } }),
    () => ({
      kind: 'message',
      message: { type: 'exec', argv: ['/bin/echo', randomText(random)], env: { A: randomText(random) } },
    }),
    () => ({ kind: 'message', message: { type: 'stat', path: `/${randomText(random)}`, followLinks: false } }),
  ])()
}

/** Cuts bytes into chunks of random sizes, many of them tiny. */
function cut(bytes: Buffer, random: Random): Buffer[] {
  const chunks: Buffer[] = []
  for (let offset = 0; offset < bytes.length; ) {
    const size = 1 + random.below(random.pick([1, 3, 7, 100, 10_000]))
    chunks.push(bytes.subarray(offset, offset + size))
    offset += size
  }
  return chunks
}

function decode(direction: Direction, chunks: Buffer[]): Sent[] {
  const decoder = new FrameDecoder(direction)
  const frames: Sent[] = []
  let parts: Buffer[] = []
  for (const chunk of chunks) {
    for (const frame of decoder.push(chunk)) {
      if (frame.kind === 'message') frames.push(frame)
      else {
        parts.push(frame.data)
        if (!frame.endOfFrame) continue
        frames.push({ kind: frame.kind, data: Buffer.concat(parts) })
        parts = []
      }
    }
  }
  decoder.end()
  return frames
}

describe('frames', () => {
  for (const [direction, randomFrame] of [
    ['to-host', randomToHost],
    ['to-guest', randomToGuest],
  ] as const) {
    it(`decode to what was encoded, wherever the stream is cut (${direction})`, () => {
      for (let seed = 1; seed <= 60; seed++) {
        const random = seededRandom(seed)
        const frames = Array.from({ length: 1 + random.below(30) }, () => randomFrame(random))
        const bytes = Buffer.concat(frames.map(encode))
        assert.deepEqual(decode(direction, cut(bytes, random)), frames, `seed ${seed}`)
      }
    })
  }

  it('never answer garbage with anything but a named violation', () => {
    for (let seed = 1; seed <= 2_000; seed++) {
      const random = seededRandom(seed)
      const direction = random.pick(['to-host', 'to-guest'] as const)
      const good = encode(direction === 'to-host' ? randomToHost(random) : randomToGuest(random))
      // Pure noise seldom gets past its first byte, so most cases are good frames with a few bytes changed.
      const bytes = random.below(4) === 0 ? random.bytes(1 + random.below(200)) : Buffer.from(good)
      for (let change = random.below(4); change > 0; change--) bytes[random.below(bytes.length)] = random.below(256)
      try {
        decode(direction, cut(bytes, random))
      } catch (error) {
        assert.ok(error instanceof ProtocolError, `seed ${seed}: ${String(error)}`)
      }
    }
  })

  it('yield what came before a fault, then the fault', () => {
    const decoder = new FrameDecoder('to-host')
    const frames = decoder.push(Buffer.concat([encode({ kind: 'stdout', data: Buffer.from('x') }), Buffer.of(9)]))
    assert.deepEqual(frames.next().value, { kind: 'stdout', data: Buffer.from('x'), endOfFrame: true })
    assert.throws(() => frames.next(), violation('frame-kind-unknown'))
  })

  it('refuse a kind by its first byte, without waiting for a length', () => {
    assert.throws(() => [...new FrameDecoder('to-host').push(Buffer.from('H'))], violation('frame-kind-unknown'))
  })

  it('refuse a length before any of its payload has come', () => {
    for (const [kind, bound] of [
      ['message', MAX_MESSAGE_BYTES],
      ['data', MAX_BULK_BYTES],
    ] as const) {
      assert.deepEqual([...new FrameDecoder('to-host').push(encodeHeader(kind, bound))], [])
      assert.throws(
        () => [...new FrameDecoder('to-host').push(encodeHeader(kind, bound + 1))],
        violation('frame-too-large'),
      )
      assert.throws(
        () => [...new FrameDecoder('to-host').push(encodeHeader(kind, 0xffff_ffff))],
        violation('frame-too-large'),
      )
    }
  })

  it('hold no more of a message that comes byte by byte than its announced size', () => {
    const message: ToHost = { type: 'error', code: 'internal', message: 'm'.repeat(4_096) }
    const padded = Buffer.from(JSON.stringify({ ...message, later: 'x'.repeat(MAX_MESSAGE_BYTES - 4_200) }))
    const bytes = Buffer.concat([encodeHeader('message', padded.length), padded])
    const decoder = new FrameDecoder('to-host')
    const before = process.memoryUsage()
    for (let index = 0; index < bytes.length - 1; index++)
      assert.equal(decoder.push(bytes.subarray(index, index + 1)).next().done, true)
    const { heapUsed, arrayBuffers } = process.memoryUsage()
    // A Buffer kept for each byte would be some 30 MB; garbage that was not collected yet is allowed for.
    if (global.gc === undefined)
      assert.ok(arrayBuffers - before.arrayBuffers < 4 * 1024 * 1024, `${heapUsed} ${arrayBuffers}`)
    assert.deepEqual([...decoder.push(bytes.subarray(-1))], [{ kind: 'message', message }])
  })

  it('are not encoded beyond what a peer would take', () => {
    const shell = 'x'.repeat(MAX_MESSAGE_BYTES)
    assert.throws(() => encodeMessage({ type: 'exec', shell }), violation('frame-too-large'))
  })
})
