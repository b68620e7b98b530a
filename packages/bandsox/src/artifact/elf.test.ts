import assert from 'node:assert/strict'
import { mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, test } from 'node:test'
import { elfFile, elfKernel, elfModule, elfNote } from './elf.fixture.js'
import { hasPvhEntry, isStatic, readModuleInfo, readSection } from './elf.js'

let folder: string
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'bandsox-elf-'))
})
after(() => rm(folder, { recursive: true }))

/** Asks a question about a file with this content. */
async function ask<T>(content: Buffer, question: (file: Awaited<ReturnType<typeof open>>) => Promise<T>): Promise<T> {
  const path = join(folder, 'file')
  await writeFile(path, content)
  const file = await open(path)
  try {
    return await question(file)
  } finally {
    await file.close()
  }
}

const damaged = { code: 'artifact-damaged' }

test('a kernel has a PVH entry when one of its notes is of Xen and of type 18', async () => {
  assert.equal(await ask(elfKernel('6.1.0'), hasPvhEntry), true)
  const note = (name: string, type: number) =>
    elfFile({ segments: [{ type: 4, content: elfNote(name, type, Buffer.alloc(8)) }] })
  assert.equal(await ask(note('Xen', 17), hasPvhEntry), false)
  assert.equal(await ask(note('GNU', 18), hasPvhEntry), false)
})

test('a program without an interpreter is static', async () => {
  assert.equal(await ask(elfFile({ segments: [{ type: 1, content: Buffer.alloc(8) }] }), isStatic), true)
  const interpreter = { type: 3, content: Buffer.from('/lib64/ld-linux-x86-64.so.2\0') }
  assert.equal(await ask(elfFile({ segments: [interpreter] }), isStatic), false)
})

test('a module tells what it depends on', () => {
  const info = readModuleInfo(elfModule(['virtio', 'virtio_ring']))
  assert.deepEqual(info.get('depends'), ['virtio,virtio_ring'])
  assert.deepEqual(info.get('license'), ['GPL'])
})

test('a section that is not there is undefined, and a file without .modinfo tells nothing', () => {
  assert.equal(readSection('.modinfo', elfFile({})), undefined)
  assert.equal(readModuleInfo(elfFile({})).size, 0)
})

test('what is no ELF file, or only the start of one, is damaged', async () => {
  assert.throws(() => readSection('.modinfo', Buffer.from('#!/bin/sh\n')), damaged)
  assert.throws(() => readSection('.modinfo', elfModule([]).subarray(0, 80)), damaged)
  await assert.rejects(ask(Buffer.from('MZ'), hasPvhEntry), damaged)
  await assert.rejects(ask(elfKernel('6.1.0').subarray(0, 100), hasPvhEntry), damaged)
})

test('a note that claims to be longer than the file is read no further', async () => {
  const lying = elfNote('GNU', 3, Buffer.alloc(4))
  lying.writeUInt32LE(0xffffffff, 0)
  assert.equal(await ask(elfFile({ segments: [{ type: 4, content: lying }] }), hasPvhEntry), false)
})
