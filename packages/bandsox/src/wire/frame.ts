/** Codec for the frames of protocol/PROTOCOL.md section 1. No I/O. */
import { type Direction, parseMessage, type ToGuest, type ToHost } from './message.js'
import { ProtocolError } from './protocol-error.js'

export const frameKinds = { message: 1, data: 2, stdout: 3, stderr: 4 } as const
export type FrameKind = keyof typeof frameKinds
export type BulkKind = Exclude<FrameKind, 'message'>

export const HEADER_BYTES = 5
export const MAX_MESSAGE_BYTES = 262_144
export const MAX_BULK_BYTES = 1_048_576

const kindNames = new Map<number, FrameKind>(
  Object.entries(frameKinds).map(([name, value]) => [value, name as FrameKind]),
)
const allowedKinds: Record<Direction, ReadonlySet<FrameKind>> = {
  'to-guest': new Set(['message', 'data']),
  'to-host': new Set(['message', 'data', 'stdout', 'stderr']),
}

/**
 * What a decoder yields. A bulk frame comes in the pieces in which it arrived, so that no byte of it is copied and none
 * waits for the rest of its frame; `endOfFrame` marks the last piece.
 */
export type Received<M> = { kind: 'message'; message: M } | { kind: BulkKind; data: Buffer; endOfFrame: boolean }

interface Incoming {
  kind: FrameKind
  length: number
  remaining: number
}

/** Decodes one direction of a connection from chunks cut anywhere. After an error it must not be used again. */
export class FrameDecoder<D extends Direction> {
  readonly #direction: D
  readonly #header = Buffer.alloc(HEADER_BYTES)
  #headerBytes = 0
  #frame: Incoming | undefined
  /** A message that came in pieces, as far as it came: one allocation of its known size, however small the pieces are. */
  #message: Buffer | undefined

  constructor(direction: D) {
    this.#direction = direction
  }

  /** @throws ProtocolError with the name from PROTOCOL.md, after everything before the fault was yielded. */
  *push(chunk: Buffer): Generator<Received<D extends 'to-host' ? ToHost : ToGuest>> {
    let offset = 0
    while (offset < chunk.length) {
      if (this.#frame === undefined) {
        const taken = Math.min(HEADER_BYTES - this.#headerBytes, chunk.length - offset)
        chunk.copy(this.#header, this.#headerBytes, offset, offset + taken)
        this.#headerBytes += taken
        offset += taken
        // The kind alone can be refused: a peer that speaks something else may never send four more bytes.
        const kind = this.#kind()
        if (this.#headerBytes < HEADER_BYTES) return
        const length = this.#length(kind)
        this.#frame = { kind, length, remaining: length }
        this.#headerBytes = 0
        continue
      }
      const frame = this.#frame
      const piece = chunk.subarray(offset, offset + frame.remaining)
      offset += piece.length
      frame.remaining -= piece.length
      if (frame.kind !== 'message') {
        if (frame.remaining === 0) this.#frame = undefined
        yield { kind: frame.kind, data: piece, endOfFrame: frame.remaining === 0 }
        continue
      }
      let payload = piece
      if (piece.length < frame.length) {
        payload = this.#message ??= Buffer.allocUnsafe(frame.length)
        piece.copy(payload, frame.length - frame.remaining - piece.length)
      }
      if (frame.remaining > 0) return
      this.#message = undefined
      this.#frame = undefined
      yield { kind: 'message', message: parseMessage(payload, this.#direction) }
    }
  }

  /** Call when the stream ended. @throws ProtocolError `frame-truncated` when that was inside a frame. */
  end(): void {
    if (this.#frame !== undefined || this.#headerBytes > 0) {
      throw new ProtocolError('frame-truncated', 'the stream ended inside a frame')
    }
  }

  #kind(): FrameKind {
    const value = this.#header.readUInt8(0)
    const kind = kindNames.get(value)
    if (kind === undefined || !allowedKinds[this.#direction].has(kind)) {
      throw new ProtocolError(
        'frame-kind-unknown',
        `frame kind 0x${value.toString(16)} is not allowed ${this.#direction}`,
      )
    }
    return kind
  }

  #length(kind: FrameKind): number {
    const length = this.#header.readUInt32BE(1)
    const bound = kind === 'message' ? MAX_MESSAGE_BYTES : MAX_BULK_BYTES
    if (length === 0) throw new ProtocolError('frame-empty', `a ${kind} frame is empty`)
    if (length > bound)
      throw new ProtocolError('frame-too-large', `a ${kind} frame of ${length} bytes exceeds ${bound}`)
    return length
  }
}

/** The five bytes before a payload of `length` bytes. */
export function encodeHeader(kind: FrameKind, length: number): Buffer {
  const header = Buffer.allocUnsafe(HEADER_BYTES)
  header.writeUInt8(frameKinds[kind], 0)
  header.writeUInt32BE(length, 1)
  return header
}

/** A whole message frame. @throws ProtocolError `frame-too-large` for a message that no peer would take. */
export function encodeMessage(message: ToGuest | ToHost): Buffer {
  const payload = Buffer.from(JSON.stringify(message))
  if (payload.length > MAX_MESSAGE_BYTES) {
    throw new ProtocolError(
      'frame-too-large',
      `a ${message.type} of ${payload.length} bytes exceeds ${MAX_MESSAGE_BYTES}`,
    )
  }
  return Buffer.concat([encodeHeader('message', payload.length), payload])
}
