/** Snapshots that are in use, of machines that come of snapshots themselves, and on their way into a file and back. */
import assert from 'node:assert/strict'
import { openSync, readFileSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs'
import { copyFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import type { Sandbox } from 'bandsox'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { cli } from './support/command-line.js'
import { leavesAllAsItWas, type Opened, openWith, output } from './support/snapshots.js'
import { isOnFirecracker, type TestStorage, temporaryStorage } from './support/storage.js'

/** More than a machine's disk may have layers: the last ones are copied. */
const GENERATIONS = 10
const GENERATION_WITH_COPY = 9

let storage: TestStorage
let opened: Opened
before(async () => {
  storage = await temporaryStorage()
  opened = await openWith(storage.folder)
})
after(async () => {
  await opened[Symbol.asyncDispose]()
  await storage[Symbol.asyncDispose]()
})

const filesOf = async (sandbox: Sandbox) => (await output(sandbox, 'cd /data && cat * | tr "\n" " "')).trim()
const upTo = (generation: number) => Array.from({ length: generation + 1 }, (_, index) => `of-${index}`).join(' ')
const write = (sandbox: Sandbox, generation: number) =>
  output(sandbox, `mkdir -p /data; echo of-${generation} > /data/${generation}; sync`)

test('one that is in use is not deleted, or by force: who uses it goes on, is saved, stopped and started', async () => {
  const { snapshots } = opened.bandsox
  const source = await opened.bandsox.create('bandsox/base', { memoryMib: 128, diskMib: 64 })
  await write(source, 0)
  const first = await source.snapshot({ name: 'first' })
  await source.delete({ force: true })
  const clone = await snapshots.restore('first')
  await write(clone, 1)
  await assert.rejects(snapshots.delete('first'), hasCode('snapshot-in-use', new RegExp(clone.id)))
  const refused = await cli(storage.folder, ['snapshot', 'rm', 'first'])
  assert.match(refused.stderr, /mapped by running sandboxes: sbx_.*\nhint: .*--force/)
  assert.match((await cli(storage.folder, ['snapshot', 'list'])).stdout, /ready, used by 1/)
  const removed = await cli(storage.folder, ['snapshot', 'rm', 'first', '--force'])
  assert.equal(removed.stdout, `Snapshot deleted: ${first.id}\n`)
  assert.deepEqual(await snapshots.list(), [])

  assert.equal(await filesOf(clone), upTo(1))
  // All of its memory is to be had, also what it has never touched.
  await output(clone, 'dd if=/dev/zero of=/dev/shm/much bs=1M count=40 2> /dev/null && sha256sum /bin/busybox')
  const second = await clone.snapshot({ name: 'second' })
  await clone.stop()
  await clone.start()
  assert.equal(await filesOf(clone), upTo(1))
  await write(clone, 2)
  await clone.restart()
  assert.equal(await filesOf(clone), upTo(2))
  await clone.delete({ force: true })
  const again = await snapshots.restore(second.id)
  assert.equal(await filesOf(again), upTo(1))
  await again.stop()
  assert.equal(await snapshots.delete('second'), second.id, 'one that is stopped maps nothing')
  await again.start()
  assert.equal(await filesOf(again), upTo(1))
  await again.delete({ force: true })
  await storage.assertNothingLeft()
})

test(`the ${GENERATIONS}th of a line of clones has all files of those before it`, async () => {
  const { bandsox } = opened
  let sandbox: Sandbox = await bandsox.create('bandsox/base', { memoryMib: 128, diskMib: 64 })
  for (let generation = 0; generation < GENERATIONS; generation++) {
    await write(sandbox, generation)
    const { id, restoreCopyBytes } = await sandbox.snapshot({ name: `generation-${generation}` })
    if (!isOnFirecracker) assert.equal(restoreCopyBytes > 0, generation >= GENERATION_WITH_COPY - 1, `${generation}`)
    await sandbox.delete({ force: true })
    sandbox = await bandsox.snapshots.restore(id)
    assert.equal(await filesOf(sandbox), upTo(generation))
    if (generation !== 5) await bandsox.snapshots.delete(id, { force: true })
  }
  await sandbox.stop()
  await sandbox.start()
  assert.equal(await filesOf(sandbox), upTo(GENERATIONS - 1))
  await sandbox.delete({ force: true })
  const earlier = await bandsox.snapshots.restore('generation-5')
  assert.equal(await filesOf(earlier), upTo(5))
  await earlier.delete({ force: true })
})

test('ids stay, names change; a prefix or a name that means two is refused', async () => {
  const { snapshots } = opened.bandsox
  const [{ id = '' } = {}] = await snapshots.list()
  await snapshots.rename('generation-5', 'kept')
  assert.equal((await snapshots.get('kept')).id, id)
  assert.equal((await snapshots.get(id.slice(4, 10))).id, id)
  assert.equal((await snapshots.get(id.slice(0, 8))).name, 'kept')
  await assert.rejects(snapshots.get('generation-5'), hasCode('not-found'))
  await assert.rejects(snapshots.rename('kept', ''), hasCode('bad-request'))
  const sandbox = await snapshots.restore('kept')
  const { id: other } = await sandbox.snapshot({ name: 'kept' })
  await assert.rejects(snapshots.restore('kept'), hasCode('ambiguous-name', new RegExp(`${id}.*${other}`)))
  await assert.rejects(snapshots.get('snp_'), hasCode('not-found'))
  const renamed = await cli(storage.folder, ['snapshot', 'rename', other, 'other'])
  assert.equal(renamed.stdout, `Snapshot renamed: ${other} (other)\n`)
  const shown = await cli(storage.folder, ['snapshot', 'show', 'other'])
  assert.match(shown.stdout, new RegExp(`^id +${other}\nname +other\nkind +full\nof +${sandbox.id}\n`))
  await sandbox.delete({ force: true })
  await snapshots.delete('other')
})

test('it goes into a file, and comes back from it when it is gone', async () => {
  const { snapshots } = opened.bandsox
  const file = path.join(storage.folder, 'kept.tar')
  const { id } = await snapshots.get('kept')
  const { files } = await snapshots.verify('kept')
  const exported = await cli(storage.folder, ['snapshot', 'export', 'kept', file])
  assert.match(exported.stdout, /^Snapshot exported: .*kept\.tar \(\d/, exported.stderr)
  assert.ok(statSync(file).size < files.reduce((sum, { sizeBytes }) => sum + sizeBytes, 0), 'holes are no content')
  await assert.rejects(snapshots.export('kept', file), hasCode('bad-request', /there already/))
  await snapshots.delete('kept')
  const imported = await snapshots.import(file, { name: 'back' })
  assert.notEqual(imported.id, id)
  assert.deepEqual((await snapshots.verify('back')).files, files)
  const sandbox = await snapshots.restore('back')
  assert.equal(await filesOf(sandbox), upTo(5))
  await sandbox.stop()
  await sandbox.start()
  assert.equal(await filesOf(sandbox), upTo(5))
  await sandbox.delete({ force: true })
  await snapshots.delete('back')
})

test('what is no such file, or not as it was, is refused, and nothing of it is left', async () => {
  const { snapshots } = opened.bandsox
  const file = path.join(storage.folder, 'kept.tar')
  const other = path.join(storage.folder, 'other.tar')
  const { size } = statSync(file)
  const refused = async (what: string, code: RegExp) =>
    await leavesAllAsItWas(storage.folder, () =>
      assert.rejects(snapshots.import(other), (error: { code?: string; message: string }) => {
        assert.match(error.code ?? '', code, `${what}: ${error.message}`)
        return true
      }),
    )
  await assert.rejects(snapshots.import(path.join(storage.folder, 'nothing')), hasCode('file-not-found'))
  await assert.rejects(snapshots.import(storage.folder), hasCode('bad-request'))
  await assert.rejects(snapshots.import(file, { name: 'no/slash' }), hasCode('bad-request'))
  for (const [what, content] of Object.entries({
    nothing: Buffer.alloc(0),
    zeros: Buffer.alloc(10_240),
    noise: readFileSync(process.execPath).subarray(0, 1_000_000),
  })) {
    writeFileSync(other, content)
    await refused(what, /^bad-request$/)
  }
  for (const share of [0.0001, 0.3, 0.9, 0.9999]) {
    await copyFile(file, other)
    truncateSync(other, Math.floor(size * share))
    await refused(`cut at ${share}`, /^(bad-request|snapshot-damaged)$/)
  }
  const pieces = Array.from({ length: 6 }, (_, index) => Math.floor((size * index) / 6))
  for (const position of [0, 530, 1_600, ...pieces.slice(1)]) {
    await copyFile(file, other)
    const descriptor = openSync(other, 'r+')
    writeSync(
      descriptor,
      Buffer.from([readFileSync(other)[position] ?? 0, 0].map((byte) => byte ^ 0x10)),
      0,
      1,
      position,
    )
    await refused(`flipped at ${position}`, /^(bad-request|snapshot-damaged|artifact-damaged)$/)
  }
  const result = await cli(storage.folder, ['snapshot', 'import', other])
  assert.notEqual(result.status, 0)
  assert.match(
    result.stderr,
    /^bandsox: \S+ of the snapshot in .*other\.tar has the digest .*\nhint: .*bring it anew\n$/,
  )
})
