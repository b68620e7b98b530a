/** Runs every case of protocol/vectors/, whole and one byte at a time. The format is in its README.md. */
import assert from 'node:assert/strict'
import { readdirSync, readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { z } from 'zod'
import { FrameDecoder, type FrameKind, frameKinds, MAX_BULK_BYTES } from './frame.js'
import type { Direction } from './message.js'
import { ProtocolError } from './protocol-error.js'

const folder = new URL('../../../../protocol/vectors/', import.meta.url)
/** Fewer would mean that the folder was emptied or is another one. */
const FEWEST_CASES = 60

type Segment =
  | { hex: string }
  | { text: string }
  | { u8: number }
  | { u32: number }
  | { repeat: { hex: string; count: number } }
  | { frame: { kind: number; text: string } | { kind: number; parts: Segment[] } }

const segment: z.ZodType<Segment> = z.lazy(() =>
  z.union([
    z.strictObject({ hex: z.string().regex(/^([0-9a-f]{2})*$/) }),
    z.strictObject({ text: z.string() }),
    z.strictObject({ u8: z.number() }),
    z.strictObject({ u32: z.number() }),
    z.strictObject({ repeat: z.strictObject({ hex: z.string(), count: z.number().int().max(2_000_000) }) }),
    z.strictObject({
      frame: z.union([
        z.strictObject({ kind: z.number(), text: z.string() }),
        z.strictObject({ kind: z.number(), parts: z.array(segment) }),
      ]),
    }),
  ]),
)
const expectedFrame = z.union([
  z.strictObject({
    kind: z.literal('message'),
    message: z.record(z.string(), z.unknown()),
    ignore: z.array(z.string()).optional(),
  }),
  z.strictObject({ kind: z.enum(['data', 'stdout', 'stderr']), length: z.number(), hex: z.string().optional() }),
])
const vectorSchema = z.strictObject({
  name: z.string(),
  direction: z.enum(['to-guest', 'to-host']),
  input: z.array(segment),
  expect: z.array(expectedFrame),
  error: z.string().nullable(),
})
type Vector = z.infer<typeof vectorSchema>

type Decoded = { kind: 'message'; message: unknown } | { kind: Exclude<FrameKind, 'message'>; data: Buffer }

const files = readdirSync(folder).filter((name) => name.endsWith('.json'))
const vectors = files.map((file) => ({ file, vector: vectorSchema.parse(readJson(file)) }))

describe('the vectors of the protocol', () => {
  it(`are at least ${FEWEST_CASES}, and name every violation`, () => {
    assert.ok(files.length >= FEWEST_CASES, `only ${files.length} in ${folder.pathname}`)
    const named = new Set(vectors.map(({ vector }) => vector.error))
    for (const violation of [
      ...[
        'frame-kind-unknown',
        'frame-empty',
        'frame-too-large',
        'frame-truncated',
        'message-not-utf8',
        'message-too-deep',
      ],
      ...['message-not-json', 'message-not-object', 'message-type-unknown', 'message-invalid'],
    ]) {
      assert.ok(named.has(violation), `no vector ends with ${violation}`)
    }
  })

  for (const { file, vector } of vectors) {
    it(`${file}: ${vector.name}`, () => {
      const input = bytesOf(vector.input)
      check(vector, decode(vector.direction, [input]))
      check(vector, decode(vector.direction, singleBytes(input)))
    })
  }
})

/** Whole data frames as they came, and the error's name that ended it. */
function decode(direction: Direction, chunks: Iterable<Buffer>): { frames: Decoded[]; error: string | null } {
  const decoder = new FrameDecoder(direction)
  const frames: Decoded[] = []
  // Copied rather than gathered: a frame of 1 MiB comes in as many pieces.
  let data = Buffer.alloc(0)
  let length = 0
  try {
    for (const chunk of chunks) {
      for (const frame of decoder.push(chunk)) {
        if (frame.kind === 'message') {
          frames.push(frame)
          continue
        }
        if (data.length === 0) data = Buffer.alloc(MAX_BULK_BYTES)
        length += frame.data.copy(data, length)
        if (!frame.endOfFrame) continue
        frames.push({ kind: frame.kind, data: Buffer.from(data.subarray(0, length)) })
        length = 0
      }
    }
    decoder.end()
    return { frames, error: null }
  } catch (error) {
    if (error instanceof ProtocolError) return { frames, error: error.violation }
    throw error
  }
}

function check(vector: Vector, { frames, error }: ReturnType<typeof decode>): void {
  assert.equal(error, vector.error)
  assert.deepEqual(
    frames.map(({ kind }) => kind),
    vector.expect.map(({ kind }) => kind),
  )
  vector.expect.forEach((expected, index) => {
    const decoded = frames[index]
    assert.ok(decoded !== undefined)
    if (expected.kind === 'message') {
      assert.ok(decoded.kind === 'message')
      checkMessage(decoded.message, expected.message, expected.ignore ?? [])
    } else {
      assert.ok(decoded.kind !== 'message')
      assert.equal(decoded.data.length, expected.length)
      if (expected.hex !== undefined) assert.equal(decoded.data.toString('hex'), expected.hex)
    }
  })
}

/** Our decoder drops what it does not know; these are the names that the vectors make up. */
const unknownFields = ['later', 'x', 'PATH', 'Path']

function checkMessage(decoded: unknown, expected: Record<string, unknown>, ignored: readonly string[]): void {
  assert.ok(typeof decoded === 'object' && decoded !== null)
  const kept = (fields: object) =>
    Object.fromEntries(Object.entries(fields).filter(([name]) => !ignored.includes(name)))
  assert.deepEqual(kept(decoded), kept(known(expected)))
  for (const name of ignored) assert.ok(name in decoded || unknownFields.includes(name), `the field ${name} was lost`)
}

function known<T>(value: T): T
function known(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(known)
  if (typeof value !== 'object' || value === null) return value
  return Object.fromEntries(
    Object.entries(value)
      .filter(([name]) => !unknownFields.includes(name))
      .map(([name, field]) => [name, known(field)]),
  )
}

function* singleBytes(input: Buffer): Generator<Buffer> {
  for (let index = 0; index < input.length; index++) yield input.subarray(index, index + 1)
}

const bytesOf = (segments: Segment[]): Buffer => Buffer.concat(segments.map(bytesOfOne))

function bytesOfOne(one: Segment): Buffer {
  if ('hex' in one) return Buffer.from(one.hex, 'hex')
  if ('text' in one) return Buffer.from(one.text)
  if ('u8' in one) return Buffer.of(one.u8)
  if ('u32' in one) return u32(one.u32)
  if ('repeat' in one) return Buffer.alloc(one.repeat.count * (one.repeat.hex.length / 2), one.repeat.hex, 'hex')
  const payload = 'text' in one.frame ? Buffer.from(one.frame.text) : bytesOf(one.frame.parts)
  return Buffer.concat([Buffer.of(one.frame.kind), u32(payload.length), payload])
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

function readJson(file: string): unknown {
  return JSON.parse(readFileSync(new URL(file, folder), 'utf8'))
}

// The kinds that the vectors name by number must be the codec's own.
assert.deepEqual(frameKinds, { message: 1, data: 2, stdout: 3, stderr: 4 })
