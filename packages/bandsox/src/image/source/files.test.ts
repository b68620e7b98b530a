import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it, type TestContext } from 'node:test'
import { openDescriptors } from '../../testing/descriptors.js'
import { hasCode } from '../../testing/errors.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { entry, file, hardlink, symlink, tar } from '../testing/tar-builder.js'
import { folderFiles, type ImageFiles, readDocumentFile, tarFiles } from './files.js'
import { MAX_DOCUMENT_BYTES } from './source.js'

async function tarOf(t: TestContext, bytes: Buffer): Promise<ImageFiles> {
  const path = join(await temporaryFolder(t), 'image.tar')
  await writeFile(path, bytes)
  const files = await tarFiles(path, 'image.tar')
  t.after(() => files.close())
  return files
}

async function textOf(files: ImageFiles, path: string, offset = 0): Promise<string> {
  const parts: Buffer[] = []
  for await (const part of files.open(path, offset)) parts.push(part as Buffer)
  return Buffer.concat(parts).toString('latin1')
}

it('a folder gives sizes and bytes of its files, and of nothing else', async (t) => {
  const folder = await temporaryFolder(t)
  await mkdir(join(folder, 'blobs'))
  await writeFile(join(folder, 'blobs/a'), 'hello')
  execFileSync('mkfifo', [join(folder, 'pipe')])
  const files = folderFiles(folder)
  assert.equal(await files.sizeOf('blobs/a'), 5)
  assert.equal(await textOf(files, 'blobs/a', 2), 'llo')
  for (const path of ['blobs', 'none', 'blobs/a/b', 'pipe']) assert.equal(await files.sizeOf(path), undefined, path)
  await assert.rejects(readDocumentFile(files, 'none'), hasCode('image-invalid', /holds no none/))
})

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
  assert.throws(() => files.open('none', 0), hasCode('image-invalid', /image\.tar holds no none/))
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

it('what is no tar says where, and leaves no descriptor', async (t) => {
  const path = join(await temporaryFolder(t), 'image.tar')
  const before = await openDescriptors()
  for (const [bytes, message] of [
    [Buffer.from('<html>'.repeat(200)), /cannot read image\.tar as a tar: at byte 0/],
    [tar(file('a', 'x'.repeat(2000))).subarray(0, 1000), /cut short/],
    [tar(entry({ path: 'a', type: 'Z' })), /unknown type/],
  ] as const) {
    await writeFile(path, bytes)
    await assert.rejects(tarFiles(path, 'image.tar'), hasCode('layer-invalid', message))
  }
  await writeFile(path, tar(file('a')))
  await assert.rejects(tarFiles(path, 'image.tar', AbortSignal.abort(new Error('enough'))), /enough/)
  assert.deepEqual(await openDescriptors(), before)
})

it('a tar of too many files is none of an image', async (t) => {
  const one = file('a').subarray(0, 512)
  const names = Array.from({ length: 100_001 }, (_, index) => index)
  const many = Buffer.alloc(names.length * 512)
  for (const index of names) {
    one.copy(many, index * 512)
    many.write(String(index).padStart(6, '0'), index * 512)
    many.write(`${(sumOf(one) - 97 + digitSum(index)).toString(8).padStart(6, '0')}\0 `, index * 512 + 148)
  }
  await assert.rejects(tarOf(t, many), hasCode('image-invalid', /over 100000 files/))
})

const sumOf = (header: Buffer): number => header.reduce((sum, byte, at) => sum + (at >= 148 && at < 156 ? 32 : byte), 0)
const digitSum = (index: number): number =>
  [...String(index).padStart(6, '0')].reduce((sum, digit) => sum + digit.charCodeAt(0), 0)

it('a document has a bound', async (t) => {
  const files = await tarOf(t, tar(file('small', '{}'), file('large', Buffer.alloc(MAX_DOCUMENT_BYTES + 1))))
  assert.equal((await readDocumentFile(files, 'small')).toString(), '{}')
  await assert.rejects(readDocumentFile(files, 'large'), hasCode('image-invalid', /has 4194305 bytes, over 4194304/))
})
