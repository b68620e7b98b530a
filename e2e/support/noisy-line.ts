/** A line between shim and guest that damages bytes, drops frames and repeats them: protocol/SERIAL.md's frames, from outside. */
import { once } from 'node:events'
import { createConnection, createServer, type Socket } from 'node:net'
import { type Random, seededRandom } from 'bandsox/internal/testing/random.js'
import type { TestScope } from 'bandsox/internal/testing/temporary-folder.js'

const MAGIC = Buffer.from([0xf5, 0xd8])
const HEADER_BYTES = 32
const CHECK_BYTES = 4

export interface Noise {
  /** One byte in so many is damaged. */
  damagedByteIn: number
  /** Shares of the frames, in percent. */
  droppedPercent: number
  repeatedPercent: number
}

export interface NoisyLine {
  readonly frames: number
  readonly dropped: number
  readonly repeated: number
  readonly damagedBytes: number
}

/** Listens at `at`, and passes each connection on to `target`. */
export async function noisyLine(
  t: TestScope,
  { at, target, noise, seed }: { at: string; target: string; noise: Noise; seed: number },
): Promise<NoisyLine> {
  const counts = { frames: 0, dropped: 0, repeated: 0, damagedBytes: 0 }
  const open = new Set<Socket>()
  const random = seededRandom(seed)
  const server = createServer((host) => {
    const guest = createConnection(target)
    for (const [from, to] of [
      [host, guest],
      [guest, host],
    ] as const) {
      open.add(from)
      from.on('error', () => undefined)
      from.on('close', () => {
        open.delete(from)
        to.destroy()
      })
      const frames = new FrameCutter()
      from.on('data', (data: Buffer) => {
        const passed = frames.push(data).flatMap((frame) => withNoise(frame, noise, random, counts))
        if (passed.length === 0 || to.write(Buffer.concat(passed))) return
        from.pause()
        to.once('drain', () => from.resume())
      })
    }
  })
  server.listen(at)
  await once(server, 'listening')
  t.after(async () => {
    for (const socket of open) socket.destroy()
    server.close()
    await once(server, 'close')
  })
  return counts
}

function withNoise(
  frame: Buffer,
  noise: Noise,
  random: Random,
  counts: { -readonly [K in keyof NoisyLine]: number },
): Buffer[] {
  counts.frames++
  const lot = random.below(100)
  if (lot < noise.droppedPercent) {
    counts.dropped++
    return []
  }
  const isRepeated = lot < noise.droppedPercent + noise.repeatedPercent
  if (isRepeated) counts.repeated++
  return (isRepeated ? [frame, frame] : [frame]).map((each) => {
    const bytes = Buffer.from(each)
    // The distance to the next damaged byte, evenly drawn with the right mean: to draw for each byte would take longer than the guest.
    for (
      let at = random.below(2 * noise.damagedByteIn);
      at < bytes.length;
      at += 1 + random.below(2 * noise.damagedByteIn)
    ) {
      bytes[at] = (bytes[at] ?? 0) ^ (1 + random.below(255))
      counts.damagedBytes++
    }
    return bytes
  })
}

/** Cuts what an honest end sends into its frames. */
class FrameCutter {
  #rest = Buffer.alloc(0)

  push(data: Buffer): Buffer[] {
    this.#rest = Buffer.concat([this.#rest, data])
    const frames: Buffer[] = []
    for (;;) {
      if (this.#rest.length < HEADER_BYTES) return frames
      if (!this.#rest.subarray(0, 2).equals(MAGIC)) throw new Error('the line lost step: what comes is no frame')
      const payload = this.#rest.readUInt16BE(26)
      const size = HEADER_BYTES + payload + (payload === 0 ? 0 : CHECK_BYTES)
      if (this.#rest.length < size) return frames
      frames.push(this.#rest.subarray(0, size))
      this.#rest = this.#rest.subarray(size)
    }
  }
}
