import assert from 'node:assert/strict'
import { it } from 'node:test'
import { type Random, seededRandom } from '../testing/random.js'
import type { TarEntry } from './tar-entry.js'
import { TarReader } from './tar-reader.js'
import { entryHeader, type OutputEntry, paddingAfter } from './tar-writer.js'

const CASES = 3_000

function readBack(header: Buffer): TarEntry {
  const found: TarEntry[] = []
  const reader = new TarReader((entry) => found.push(entry))
  reader.write(header)
  const [entry, another] = found
  assert.ok(entry !== undefined && another === undefined, `${found.length} entries`)
  return entry
}

/** Any bytes but a NUL, without a slash at its end. */
function randomName(random: Random, bytes: number): string {
  const name = Buffer.from(random.bytes(bytes).map((byte) => byte || 1)).toString('latin1')
  return name.replace(/\/$/, 'x')
}

function randomEntry(random: Random): OutputEntry {
  const kind = random.pick([
    'file',
    'symlink',
    'character-device',
    'block-device',
    'fifo',
    'directory',
    'hardlink',
  ] as const)
  const bytes = () => random.pick([1, 5, 99, 100, 101, 155, 255, 4095])
  const xattrs = Array.from({ length: random.below(4) }, (): [string, Buffer] => [
    `user.${randomName(random, 1 + random.below(20)).replaceAll('=', '-')}`,
    random.bytes(random.below(300)),
  ])
  const number = (bits: number) =>
    random.pick([0, 1, 8, 0o777777, 2 ** 21 - 1, 2 ** 21, 2 ** 31, 2 ** bits - 1].filter((each) => each < 2 ** bits))
  return {
    kind,
    path: randomName(random, bytes()),
    mode: random.below(0o10000),
    uid: Math.min(number(32), 2 ** 32 - 2),
    gid: Math.min(number(32), 2 ** 32 - 2),
    mtime: number(32),
    xattrs: xattrs.length === 0 ? undefined : new Map(xattrs),
    ...((kind === 'symlink' || kind === 'hardlink') && { target: randomName(random, bytes()) }),
    ...(kind.endsWith('-device') && { device: { major: number(12), minor: number(20) } }),
    ...(kind === 'file' && { sizeBytes: random.pick([0, 1, 511, 512, 513, 2 ** 33 - 1, 2 ** 33, 2 ** 40, 2 ** 52]) }),
  }
}

it(`reads ${CASES} random entries back as they were written`, () => {
  for (let seed = 1; seed <= CASES; seed++) {
    const entry = randomEntry(seededRandom(seed))
    const header = entryHeader(entry)
    assert.equal(header.length % 512, 0)
    const { content, ...read } = readBack(header)
    const { sizeBytes = 0, target = '', device = { major: 0, minor: 0 }, ...rest } = entry
    assert.deepEqual(read, { ...rest, target, device }, `seed ${seed}`)
    assert.deepEqual(
      content,
      { position: header.length, storedBytes: sizeBytes, sizeBytes, extents: undefined },
      `seed ${seed}`,
    )
  }
})

it('pads contents to whole blocks', () => {
  assert.deepEqual([0, 1, 511, 512, 513].map(paddingAfter), [0, 511, 1, 0, 511])
})
