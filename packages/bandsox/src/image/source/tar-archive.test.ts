import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it, type TestContext } from 'node:test'
import { openDescriptors } from '../../testing/descriptors.js'
import { hasCode } from '../../testing/errors.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { DEFAULT_LIMITS } from '../layer/limits.js'
import { entry, file, folder, gzip, hardlink, sparseFile, symlink, tar } from '../testing/tar-builder.js'
import type { TarFiles } from './files.js'
import { openTarArchive, type TarArchiveOptions } from './tar-archive.js'
import type { TarIndex } from './tar-index.js'

const isCrowded = (index: TarIndex) => index.isCrowded
const hasSystemFolder = (index: TarIndex) => index.hasSystemFolder

async function opening(
  t: TestContext,
  bytes: Buffer,
  { isForeign = isCrowded, ...over }: Partial<TarArchiveOptions> & { isForeign?: (index: TarIndex) => boolean } = {},
) {
  const path = join(await temporaryFolder(t), 'image')
  const workFolder = await temporaryFolder(t)
  await writeFile(path, bytes)
  const open = () => openTarArchive(path, isForeign, { workFolder, limits: DEFAULT_LIMITS, ...over })
  return { path, workFolder, open }
}

async function tarOf(t: TestContext, bytes: Buffer): Promise<TarFiles> {
  const files = await (await opening(t, bytes)).open()
  assert.ok(files)
  t.after(() => files.close())
  return files
}

async function textOf(files: TarFiles, path: string, offset = 0): Promise<string> {
  const parts: Buffer[] = []
  for await (const part of files.open(path, offset)) parts.push(part as Buffer)
  return Buffer.concat(parts).toString('latin1')
}

it('a tar gives its files where they lie, from any offset', async (t) => {
  const large = 'x'.repeat(3_000_000)
  const files = await tarOf(t, tar(file('./a', 'hello'), file('/b/c', large), file('d//e', 'e'), file('empty')))
  assert.deepEqual(await Promise.all(['a', 'b/c', 'd/e', 'empty', 'b', 'none'].map((path) => files.sizeOf(path))), [
    5,
    3_000_000,
    1,
    0,
    undefined,
    undefined,
  ])
  assert.equal(await textOf(files, 'a'), 'hello')
  assert.equal(await textOf(files, 'a', 3), 'lo')
  assert.equal(await textOf(files, 'b/c', 1), large.slice(1))
  assert.equal(await textOf(files, 'empty'), '')
  assert.throws(() => files.open('none', 0), hasCode('image-invalid', /image holds no none/))
})

it('a tar follows its links, but neither out of itself nor in a circle', async (t) => {
  const files = await tarOf(
    t,
    tar(
      file('x/layer.tar', 'hello'),
      symlink('y/layer.tar', '../x/layer.tar'),
      hardlink('hard', './x/layer.tar'),
      symlink('out', '../../../etc/passwd'),
      symlink('absolute', '/etc/passwd'),
      symlink('a', 'b'),
      symlink('b', 'a'),
    ),
  )
  assert.equal(await textOf(files, 'y/layer.tar'), 'hello')
  assert.equal(await textOf(files, 'hard'), 'hello')
  for (const path of ['out', 'absolute', 'a', '../x', '/etc/passwd'])
    assert.equal(await files.sizeOf(path), undefined, path)
})

it('of two files of one name in a tar the later holds', async (t) => {
  const files = await tarOf(
    t,
    tar(file('a', 'old'), file('a', 'new!'), symlink('b', 'a'), file('b', '1'), file('c'), symlink('c', 'a')),
  )
  assert.equal(await textOf(files, 'a'), 'new!')
  assert.equal(await textOf(files, 'b'), '1')
  assert.equal(await textOf(files, 'c'), 'new!')
})

it('what is no tar says where, and leaves neither descriptor nor file', async (t) => {
  const before = await openDescriptors()
  for (const [bytes, message] of [
    [Buffer.from('<html>'.repeat(200)), /cannot read .*image as a tar: at byte 0/],
    [tar(file('a', 'x'.repeat(2000))).subarray(0, 1000), /cut short/],
    [tar(entry({ path: 'a', type: 'Z' })), /unknown type/],
    [gzip(tar(entry({ path: 'a', type: 'Z' }))), /unknown type/],
    [gzip(tar(file('a'))).subarray(0, 30), /cannot read .*image as a tar: gzip: unexpected end/],
    [Buffer.from([0xfd, 0x37, 0x7a, 0x58, 0x5a, 0]), /cannot read .*image as a tar: it is compressed with xz/],
  ] as const) {
    const { open, workFolder } = await opening(t, bytes)
    await assert.rejects(open(), hasCode('layer-invalid', message))
    assert.deepEqual(await readdir(workFolder), [])
  }
  const { open } = await opening(t, tar(file('a')), { signal: AbortSignal.abort(new Error('enough')) })
  await assert.rejects(open(), /enough/)
  assert.deepEqual(await openDescriptors(), before)
})

for (const [kind, packed] of [
  ['gzip', gzip],
  ['zstd', (bytes: Buffer) => execFileSync('zstd', ['-qc'], { input: bytes })],
] as const) {
  it(`a tar packed with ${kind} is unpacked while it is read, and removed when it is closed`, async (t) => {
    const told: string[] = []
    const large = 'x'.repeat(3_000_000)
    const { path, open, workFolder } = await opening(t, packed(tar(file('a', 'hello'), file('b', large))), {
      onActivity: (what) => told.push(what),
    })
    const files = await open()
    assert.ok(files)
    assert.equal((await readdir(workFolder)).length, 1)
    assert.deepEqual([await textOf(files, 'a', 1), await textOf(files, 'b')], ['ello', large])
    await files.close()
    assert.deepEqual(await readdir(workFolder), [])
    assert.deepEqual(told, [`unpacking ${path}`])
  })
}

it('a small file that unpacks to more than an image may have is left as soon as that shows', async (t) => {
  const before = await openDescriptors()
  const bytes = tar(file('a', Buffer.alloc(5_000_000)))
  const limits = { ...DEFAULT_LIMITS, maxBytes: 1_000_000 }
  const { open, workFolder } = await opening(t, gzip(bytes), { limits })
  await assert.rejects(open(), hasCode('image-too-large', /cannot read .*image as a tar: its files have over 1000000/))
  assert.deepEqual(await readdir(workFolder), [])
  assert.deepEqual(await openDescriptors(), before)
  // A plain one takes no more room than it has already: several images may lie in it.
  assert.ok(await tarOf(t, bytes))
})

it('a tar is left when it is known to be something else, and nothing is written for it', async (t) => {
  // What follows is no tar any more, which only who reads on finds out.
  const rootfs = Buffer.concat([folder('usr/'), file('large', Buffer.alloc(3_000_000)), Buffer.alloc(5000, 'x')])
  for (const bytes of [rootfs, gzip(rootfs)]) {
    const { open, workFolder } = await opening(t, bytes, { isForeign: hasSystemFolder })
    assert.equal(await open(), undefined)
    assert.deepEqual(await readdir(workFolder), [])
  }
  for (const path of ['./etc/passwd', '/bin', 'lib/x', 'proc/']) {
    const { open } = await opening(t, tar(file(path)), { isForeign: hasSystemFolder })
    assert.equal(await open(), undefined, path)
  }
  for (const path of ['blobs/sha256/etc', 'manifest.json', 'a/usr/x', 'library/layer.tar']) {
    const { open } = await opening(t, tar(file(path)), { isForeign: hasSystemFolder })
    const files = await open()
    assert.ok(files, path)
    await files.close()
  }
})

it('a tar of too many files, or of names without end, is crowded', async (t) => {
  const one = file('a').subarray(0, 512)
  const names = Array.from({ length: 100_001 }, (_, index) => index)
  const many = Buffer.alloc(names.length * 512)
  for (const index of names) {
    one.copy(many, index * 512)
    many.write(String(index).padStart(6, '0'), index * 512)
    many.write(`${(sumOf(one) - 97 + digitSum(index)).toString(8).padStart(6, '0')}\0 `, index * 512 + 148)
  }
  assert.equal(await (await opening(t, many)).open(), undefined)
  const long = Array.from({ length: 8500 }, (_, index) => symlink(`${index}`.padEnd(4000, 'x'), 'y'.repeat(4000)))
  assert.equal(await (await opening(t, tar(...long))).open(), undefined)
})

const sumOf = (header: Buffer): number => header.reduce((sum, byte, at) => sum + (at >= 148 && at < 156 ? 32 : byte), 0)
const digitSum = (index: number): number =>
  [...String(index).padStart(6, '0')].reduce((sum, digit) => sum + digit.charCodeAt(0), 0)

it('a path or a target that no archive has, and a sparse file, are left out', async (t) => {
  const long = 'x'.repeat(4097)
  const sparse = sparseFile('sparse', 'pax-1.0', { sizeBytes: 5000, map: [[4096, 2]], data: 'ab' })
  const files = await tarOf(t, tar(file('a', 'a'), file(long), symlink('far', long), hardlink('b', 'a'), sparse))
  assert.deepEqual(
    ['a', long, 'far', 'b', 'sparse'].map((path) => files.resolve(path)),
    ['a', undefined, undefined, 'a', undefined],
  )
})
