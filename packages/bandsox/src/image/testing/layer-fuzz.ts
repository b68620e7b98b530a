/** Feeds the reader of layers with tars that were right once. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import type { TarEntry } from '../../tar/tar-entry.js'
import { TarReader } from '../../tar/tar-reader.js'
import { entryHeader } from '../../tar/tar-writer.js'
import type { Random } from '../../testing/random.js'
import { ImageTree } from '../layer/image-tree.js'
import { ImageBudget } from '../layer/layer-index.js'
import { LayerTree } from '../layer/layer-tree.js'
import { DEFAULT_LIMITS, MAX_NAME_BYTES, MAX_PATH_BYTES } from '../layer/limits.js'
import { type FuzzRun, fuzz, outcomeOf } from './fuzz-run.js'
import { imageCases } from './image-corpus.js'
import { extension, paxRecord, writeChecksum, writeNumber } from './tar-builder.js'

const BLOCK = 512
const MAX_SEED_BYTES = 40_000
const LIMITS = { ...DEFAULT_LIMITS, maxBytes: 2 ** 24, maxEntries: 5_000 }

const seedTars: readonly Buffer[] = imageCases
  .flatMap(({ layers, unpacked = layers }) => unpacked)
  .filter(({ length }) => length > 0 && length <= MAX_SEED_BYTES)

/** @throws When the reader throws what it may not, or gives what it may not, or gives another thing for other pieces. */
export const fuzzLayers = (run: FuzzRun): Promise<string> =>
  fuzz(run, async (random) => {
    const layers = Array.from({ length: 1 + random.below(3) }, () => mutated(random))
    const codes = ['layer-invalid', 'layer-hostile', 'image-too-large'] as const
    const whole = await outcomeOf(codes, () => merged(layers, (tar) => [tar]))
    for (const bytes of [1 + random.below(600), 1 + random.below(20_000)]) {
      assert.deepEqual(await outcomeOf(codes, () => merged(layers, (tar) => pieces(tar, bytes, random))), whole)
    }
  })

/** @returns A digest of all that the disk would be made of, but for contents. */
async function merged(layers: readonly Buffer[], cut: (tar: Buffer) => Buffer[]): Promise<string> {
  const budget = new ImageBudget(LIMITS)
  const image = new ImageTree()
  const hash = createHash('sha256')
  for (const tar of layers) {
    for (const inode of await image.merge(await readLayer(tar, cut, budget))) {
      const { position, storedBytes, sizeBytes } = inode.content
      if (inode.kind === 'file') assert.ok(position + storedBytes <= tar.length)
      for (const path of inode.paths) {
        checkPath(path)
        const entry = { ...inode, path, sizeBytes: inode.kind === 'file' ? sizeBytes : 0 }
        hash.update(`${position} ${JSON.stringify(inode.content.extents)}`).update(checkedHeader(entry))
      }
    }
  }
  for (const { path, attributes } of image.finish()) {
    if (path !== '') checkPath(path)
    hash.update(checkedHeader({ ...attributes, path: path || '.', kind: 'directory' }))
  }
  return hash.digest('hex')
}

async function readLayer(tar: Buffer, cut: (tar: Buffer) => Buffer[], budget: ImageBudget): Promise<LayerTree> {
  const tree = new LayerTree({ allowDevices: false, takeNodes: (count) => budget.takeEntries(count) })
  const reader = new TarReader((entry) => {
    budget.takeBytes(entry.content.sizeBytes)
    tree.add(entry)
  })
  for (const piece of cut(tar)) reader.write(piece)
  reader.end()
  await tree.finish()
  return tree
}

function checkPath(path: string): void {
  const parts = path.split('/')
  const isGood =
    path.length < MAX_PATH_BYTES &&
    !path.includes('\0') &&
    parts.every((part) => part !== '' && part !== '.' && part !== '..' && part.length <= MAX_NAME_BYTES)
  if (!isGood) assert.fail(`${JSON.stringify(path)} is a path of the image`)
}

/** As sqfstar would read it. */
function checkedHeader(entry: Parameters<typeof entryHeader>[0]): Buffer {
  const header = entryHeader(entry)
  const found: TarEntry[] = []
  const reader = new TarReader((each) => found.push(each))
  reader.write(header)
  const [read, another] = found
  assert.ok(read !== undefined && another === undefined)
  assert.deepEqual([read.path, read.kind, read.mode], [entry.path, entry.kind, entry.mode])
  return header
}

export function pieces(tar: Buffer, bytes: number, random: Random): Buffer[] {
  const cut: Buffer[] = []
  for (let at = 0; at < tar.length; ) {
    const next = at + 1 + random.below(bytes)
    cut.push(tar.subarray(at, next))
    at = next
  }
  return cut
}

function mutated(random: Random): Buffer {
  let tar: Buffer = Buffer.from(random.pick(seedTars))
  for (let left = random.below(4); left > 0; left--) tar = random.pick(mutations)(tar, random)
  return tar
}

const oddPaths = [
  ...['..', '../x', '/', '.', '', 'a', 'a/', 'a/b', 'd/x', 's', 's/x', 'f', './/a', 'a/../..', 'a/../b'],
  ...['.wh.a', '.wh..', '.wh...', '.wh.', 'd/.wh.x', '.wh..wh..opq', 'd/.wh..wh..opq', '.wh..wh.plnk', '\xff\n'],
  ...['d/'.repeat(40), 'n'.repeat(100)],
]
const oddNumbers = [0, 1, 5, 511, 512, 513, 1024, 0o7777, 2 ** 21, 2 ** 31, 2 ** 32 - 1, 2 ** 33, 2 ** 52, -1]
const oddKeys = [
  ...['path', 'linkpath', 'size', 'uid', 'gid', 'mtime', 'SCHILY.xattr.user.a', 'SCHILY.xattr.trusted.overlay.opaque'],
  ...['GNU.sparse.major', 'GNU.sparse.minor', 'GNU.sparse.name', 'GNU.sparse.map', 'GNU.sparse.realsize'],
  ...['GNU.sparse.size', 'GNU.sparse.offset', 'GNU.sparse.numbytes', ''],
]
const oddValues = [
  '',
  '0',
  '1',
  '5',
  '512',
  '-1',
  '0,1',
  '0,5,9,1',
  '5,0',
  '1.5',
  '4294967295',
  '9'.repeat(17),
  'x\0y',
  '../x',
]
const numberFields = [
  [100, 8],
  [108, 8],
  [116, 8],
  [124, 12],
  [136, 12],
  [329, 8],
  [337, 8],
  [386, 12],
  [398, 12],
  [483, 12],
] as const

type Mutation = (tar: Buffer, random: Random) => Buffer

const mutations: readonly Mutation[] = [
  function flipBits(tar, random) {
    for (let left = 1 + random.below(8); left > 0; left--) {
      const at = random.below(tar.length || 1)
      if (at < tar.length) tar[at] = (tar[at] ?? 0) ^ (1 << random.below(8))
    }
    return tar
  },
  function cutShort(tar, random) {
    return tar.subarray(0, random.below(tar.length + 1))
  },
  function cutBlocks(tar, random) {
    const start = random.below(tar.length / BLOCK + 1) * BLOCK
    return Buffer.concat([tar.subarray(0, start), tar.subarray(start + BLOCK * (1 + random.below(3)))])
  },
  function insertAnother(tar, random) {
    const other = random.pick(seedTars)
    const [from, at] = [random.below(other.length / BLOCK + 1) * BLOCK, random.below(tar.length / BLOCK + 1) * BLOCK]
    const part = other.subarray(from, from + BLOCK * (1 + random.below(6)))
    return Buffer.concat([tar.subarray(0, at), part, tar.subarray(at)])
  },
  function spliceAnywhere(tar, random) {
    const other = random.pick(seedTars)
    return Buffer.concat([tar.subarray(0, random.below(tar.length + 1)), other.subarray(random.below(other.length))])
  },
  function append(tar, random) {
    const end = tar.length >= 2 * BLOCK ? tar.length - 2 * BLOCK : tar.length
    return Buffer.concat([tar.subarray(0, end), random.pick(seedTars)])
  },
  inHeader((header, random) => {
    const [at, width] = random.pick(numberFields)
    writeNumber(header, at, width, random.pick(oddNumbers))
  }),
  inHeader((header, random) => {
    header.write(random.pick([...'01234567SxgLKVD\0Z']), 156, 'latin1')
  }),
  inHeader((header, random) => {
    header.fill(0, 0, 100).write(random.pick(oddPaths), 0, 100, 'latin1')
  }),
  inHeader((header, random) => {
    header.fill(0, 157, 257).write(random.pick(oddPaths), 157, 100, 'latin1')
  }),
  inHeader((header, random) => {
    random.bytes(1 + random.below(12)).copy(header, random.below(BLOCK - 12))
  }),
  function insertPax(tar, random) {
    const records = Array.from({ length: 1 + random.below(5) }, () =>
      paxRecord(random.pick(oddKeys), random.pick(oddValues)),
    )
    const content = Buffer.concat(records)
    if (random.below(4) === 0) content[random.below(content.length)] = random.below(256)
    const [at] = headersOf(tar).length === 0 ? [0] : [random.pick(headersOf(tar))]
    return Buffer.concat([tar.subarray(0, at), extension('x', content), tar.subarray(at)])
  },
  function insertLongName(tar, random) {
    const name = random.pick([...oddPaths, 'd/'.repeat(2047), 'n'.repeat(256)])
    const at = headersOf(tar).length === 0 ? 0 : random.pick(headersOf(tar))
    return Buffer.concat([
      tar.subarray(0, at),
      extension(random.pick(['L', 'K']), Buffer.from(`${name}\0`, 'latin1')),
      tar.subarray(at),
    ])
  },
]

/** With a right checksum afterwards. */
function inHeader(change: (header: Buffer, random: Random) => void): Mutation {
  return (tar, random) => {
    const headers = headersOf(tar)
    if (headers.length === 0) return tar
    const at = random.pick(headers)
    const header = tar.subarray(at, at + BLOCK)
    change(header, random)
    writeChecksum(header)
    return tar
  }
}

/** Where a block stands whose checksum is right. */
function headersOf(tar: Buffer): number[] {
  const found: number[] = []
  for (let at = 0; at + BLOCK <= tar.length; at += BLOCK) {
    const told = Number.parseInt(tar.toString('latin1', at + 148, at + 155), 8)
    let sum = 8 * 0x20
    for (let index = 0; index < BLOCK; index++) if (index < 148 || index >= 156) sum += tar[at + index] ?? 0
    if (told === sum) found.push(at)
  }
  return found
}
