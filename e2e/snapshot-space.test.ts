/** A disk that fills up while a state is saved: the sandbox goes on, and nothing of it is left. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { existsSync, rmSync, statfsSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { cli } from './support/command-line.js'
import { COUNTER, counted, countsOn, leavesAllAsItWas, openWith, output } from './support/snapshots.js'
import { storageOfItsOwnSize, until } from './support/storage.js'

const MIB = 1024 * 1024
/** Enough to begin with: what a guest has in memory is more. */
const LEFT_MIB = 70

test('a disk that fills up during a snapshot, a fork, and on the way to sleep', {
  skip: process.getuid?.() !== 0 && 'mounting needs root',
}, async (t) => {
  await using storage = await storageOfItsOwnSize(700)
  await using opened = await openWith(storage.folder)
  const { bandsox } = opened
  const sandbox = await bandsox.create('bandsox/base', { memoryMib: 256, diskMib: 64 })
  await output(sandbox, `setsid sh -c '${COUNTER}' > /dev/null 2>&1 < /dev/null &`)
  await output(sandbox, 'head -c 60000000 /dev/urandom > /dev/shm/noise')
  await until(async () => (await counted(sandbox).catch(() => 0)) > 3, 'it to count')
  const filler = path.join(storage.folder, 'filler')
  const freeMib = () => {
    const { bavail, bsize } = statfsSync(storage.folder)
    return Math.floor((bavail * bsize) / MIB)
  }
  const fill = (leftMib: number) => {
    rmSync(filler, { force: true })
    execFileSync('fallocate', ['--length', `${freeMib() - leftMib}MiB`, filler])
  }
  fill(LEFT_MIB)
  t.diagnostic(`${freeMib()} MiB are left`)
  for (const [what, work] of Object.entries({
    snapshot: () => sandbox.snapshot(),
    fork: () => sandbox.fork({ count: 2 }),
    hibernate: () => sandbox.hibernate(),
  })) {
    const before = freeMib()
    await leavesAllAsItWas(storage.folder, () =>
      assert.rejects(work(), hasCode('no-space', /no space .*goes on/), what),
    )
    assert.ok(freeMib() >= before - 2, `${what} has left something: ${freeMib()} MiB of ${before}`)
    assert.equal((await sandbox.info()).state.kind, 'running')
    await countsOn(sandbox)
  }
  const { directory } = await sandbox.info()
  for (const name of ['hibernated', 'hibernated.new']) assert.ok(!existsSync(path.join(directory, name)), name)
  const said = await cli(storage.folder, ['snapshot', 'create', sandbox.id])
  assert.match(said.stderr, /no space for a snapshot of sandbox sbx_.*\nhint: .*bandsox system prune/)
  assert.equal(said.status, 73)
  // Too little to begin with is told before anything stands still.
  fill(40)
  await leavesAllAsItWas(storage.folder, () =>
    assert.rejects(sandbox.snapshot(), hasCode('no-space', /has \d+ MiB free, and 64 are needed/)),
  )
  rmSync(filler)

  const { id } = await sandbox.snapshot()
  const file = path.join(storage.folder, 'exported.tar')
  await bandsox.snapshots.export(id, file)
  fill(20)
  await leavesAllAsItWas(storage.folder, async () => {
    await assert.rejects(bandsox.snapshots.import(file), hasCode('no-space', /the snapshot in .*exported\.tar/))
    await assert.rejects(bandsox.snapshots.restore(id), hasCode('no-space'))
  })
  await assert.rejects(bandsox.snapshots.export(id, `${file}.other`), hasCode('no-space'))
  assert.ok(!existsSync(`${file}.other`))
  rmSync(filler)
  const restored = await bandsox.snapshots.restore(id)
  await countsOn(restored)
  await restored.delete({ force: true })
  await sandbox.delete({ force: true })
  await bandsox.snapshots.delete(id)
  await storage.assertNothingLeft()
})
