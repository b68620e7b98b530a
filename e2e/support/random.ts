/** Seeded pseudo-random bytes, so that a failing test fails again. */

/** xorshift32 (Marsaglia, 2003). */
export function randomBytes(sizeBytes: number, seed: number): Buffer {
  const bytes = Buffer.allocUnsafe(Math.ceil(sizeBytes / 4) * 4)
  let state = seed | 0 || 1
  for (let offset = 0; offset < bytes.length; offset += 4) {
    state ^= state << 13
    state ^= state >>> 17
    state ^= state << 5
    bytes.writeInt32LE(state, offset)
  }
  return bytes.subarray(0, sizeBytes)
}
