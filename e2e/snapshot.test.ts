/** A snapshot holds a moment: who is restored from it goes on from there, beside the source and after it. */
import assert from 'node:assert/strict'
import { statSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { openBandSox, type Sandbox } from 'bandsox'
import { listGuestJobs } from 'bandsox/internal/guest/guest-jobs.js'
import { attachToJob } from 'bandsox/internal/guest/job.js'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { cli } from './support/command-line.js'
import { belowOf, COUNTER, counted, countsOn, leavesAllAsItWas, output } from './support/snapshots.js'
import { isOnFirecracker, type TestStorage, temporaryStorage, until } from './support/storage.js'

const HOOKS = '/etc/bandsox/hooks'
const options = { memoryMib: 128, diskMib: 64 }

let storage: TestStorage
let bandsox: Awaited<ReturnType<typeof openBandSox>>
let source: Sandbox
let snapshot: string
/** How far the source had counted before it, at least. */
let countBefore: number
/** Lines of its output that had come when the snapshot was there. */
let seenAtOnce = 0
/** What the source prints, all the while. */
const seen: number[] = []

before(async () => {
  storage = await temporaryStorage()
  bandsox = await openBandSox({ storage: storage.folder })
  source = await bandsox.create('bandsox/base', {
    ...{ ...options, name: 'origin', env: { FROM: 'the source', KEPT: 'yes' } },
    ...{ labels: { role: 'source', kept: 'yes' }, metadata: { purpose: 'test' } },
  })
  reading = readCounter()
  reading.catch(() => undefined)
})
after(async () => {
  await reading.catch(() => undefined) // the source is gone by then, and its end was looked at
  await bandsox[Symbol.asyncDispose]()
  await storage[Symbol.asyncDispose]()
})

const hook = (kind: string, name: string, script: string) =>
  source.files.write(`${HOOKS}/${kind}.d/${name}`, `#!/bin/sh\n${script}\n`, { mode: 0o755 })

let reading: Promise<void> = Promise.resolve()
async function readCounter(): Promise<void> {
  let text = ''
  for await (const { data } of source.exec(COUNTER).output) {
    const lines = (text + Buffer.from(data).toString()).split('\n')
    text = lines.pop() ?? ''
    seen.push(...lines.map(Number))
  }
}

test('the source counts on over a snapshot, which says how long it stood still', async (t) => {
  await hook('snapshot', '10-tell', 'echo taken >> /root/hooks')
  await hook('restore', '10-tell', 'echo "restored $(hostname)" >> /root/hooks')
  await output(source, 'echo before > /root/before; mkdir -p /mnt/m && mount -t tmpfs none /mnt/m && echo m > /mnt/m/f')
  await until(async () => seen.length > 10, 'it to count')
  countBefore = await counted(source)
  const info = await source.snapshot({ name: 'moment', metadata: { of: 'the source' } })
  snapshot = info.id
  seenAtOnce = seen.length
  assert.match(snapshot, /^snp_[a-z2-7]{10}$/)
  assert.ok(info.pauseMs > 0 && info.pauseMs < 30_000, `${info.pauseMs} ms`)
  t.diagnostic(`stood still for ${info.pauseMs} ms: ${JSON.stringify(info.bytes)}`)
  assert.equal(info.isFrozen, true)
  assert.equal(info.sandboxName, 'origin')
  assert.deepEqual(info.metadata, { of: 'the source' })
  assert.deepEqual([info.kind, info.base, info.purpose, info.memoryMib], ['full', null, 'snapshot', 128])
  assert.ok(info.bytes.memory > 0 && info.bytes.memory <= 128 * 1024 * 1024)
  if (!isOnFirecracker) assert.equal(info.restoreCopyBytes, 0)
  await output(source, 'echo after > /root/after')
  await until(async () => seen.length > seenAtOnce + 10, 'its output to go on')
  assert.deepEqual(
    seen,
    seen.map((_, index) => index + 1),
    'the output of what ran meanwhile has a gap',
  )
  await countsOn(source)
  assert.equal(await output(source, 'cat /root/hooks'), 'taken')
  assert.equal((await source.info()).state.kind, 'running')
})

test('commands and files that are asked for while it is being saved only wait for a moment', async () => {
  let isOver = false
  const saving = source.snapshot().finally(() => {
    isOver = true
  })
  const asked: Promise<unknown>[] = []
  for (let index = 0; !isOver; index++) {
    asked.push(index % 2 === 0 ? source.exec(['true']).wait() : source.files.stat('/etc/hostname'))
    for (const each of asked) each.catch(() => undefined) // looked at when all have been asked for
    await delay(10)
  }
  await bandsox.snapshots.delete((await saving).id)
  const failed = (await Promise.allSettled(asked)).filter(({ status }) => status === 'rejected')
  assert.deepEqual(failed, [])
  assert.ok(asked.length > 5, `${asked.length} were asked for`)
})

test('a restored one goes on from there beside the source: files, memory, commands, and what it is', async () => {
  const sandbox = await bandsox.snapshots.restore(snapshot)
  const info = await sandbox.info()
  assert.equal(info.restoredFrom, snapshot)
  assert.equal(info.name, undefined)
  assert.deepEqual(info.labels, { role: 'source', kept: 'yes' })
  assert.deepEqual(info.metadata, { purpose: 'test' })
  assert.deepEqual((await bandsox.snapshots.get(snapshot)).usedBy, [sandbox.id])
  if (!isOnFirecracker) {
    const inode = (folder: string) => statSync(path.join(folder, 'overlay.ext4')).ino
    assert.equal(inode(info.directory), inode(path.join(storage.folder, 'snapshots', snapshot)), 'its disk was copied')
  }

  const now = await counted(sandbox)
  assert.ok(now >= countBefore, `it is at ${now}, and was at ${countBefore}`)
  await countsOn(sandbox)
  const [here, there] = [await counted(sandbox), await counted(source)]
  assert.ok(here < there, `the copy is at ${here}, the source at ${there}`)
  assert.equal(
    await output(sandbox, 'cat /root/before /mnt/m/f; ls /root/after 2>&1 || true'),
    [...['before', 'm'], 'ls: /root/after: No such file or directory'].join('\n'),
  )
  const hostname = sandbox.id.replace('_', '-')
  assert.equal(await output(sandbox, 'cat /root/hooks'), `taken\nrestored ${hostname}`)
  assert.equal(
    await output(sandbox, 'echo "$FROM $KEPT $BANDSOX_SANDBOX_ID $BANDSOX_IMAGE"; cat /etc/hostname'),
    `the source yes ${sandbox.id} bandsox/base\n${hostname}`,
  )

  await using below = await belowOf(storage.folder, sandbox.id)
  const running = (await listGuestJobs(below.agent, { timeoutMs: 10_000 })).filter(({ command }) => command === COUNTER)
  assert.equal(running.length, 1)
  const attached = attachToJob(async () => below.agent, running[0]?.job ?? '')
  const lines: number[] = []
  let rest = ''
  for await (const { data } of attached.output) {
    const all = (rest + Buffer.from(data).toString()).split('\n')
    rest = all.pop() ?? ''
    lines.push(...all.map(Number))
    if ((lines.at(-1) ?? 0) > here + 5) break
  }
  const [first = 0] = lines
  assert.deepEqual(
    lines,
    lines.map((_, index) => first + index),
    'what it printed since has a gap',
  )
  assert.ok(first <= seenAtOnce + 1, `its output begins at ${first}, and ${seenAtOnce} lines of it had come`)
  await countsOn(sandbox) // who was attached to it is gone
  await sandbox.delete({ force: true })
})

test('what is asked for at a restore holds in place of what was, by the command line as well', async () => {
  const result = await cli(storage.folder, [
    ...['snapshot', 'restore', 'moment', '--name', 'copy', '--unique', '-l', 'role=copy', '-e', 'FROM=the call'],
    ...['--metadata', '{"own":true}', '--disk-rate', '5'],
  ])
  assert.equal(result.status, 0, result.stderr)
  assert.match(result.stdout, /^Snapshot restored to VM: sbx_\S+ in [\d.]+ m?s, (nothing|\S+ \S+) copied\n$/)
  if (!isOnFirecracker) assert.match(result.stdout, /nothing copied/)
  const copy = await bandsox.get('copy')
  const info = await copy.info()
  assert.deepEqual(info.labels, { role: 'copy', kept: 'yes' })
  assert.deepEqual(info.metadata, { own: true })
  assert.equal(info.limits.diskBytesPerSecond, 5 * 1024 * 1024)
  assert.equal(await output(copy, 'echo "$FROM $KEPT $BANDSOX_SANDBOX_NAME"; hostname'), 'the call yes copy\ncopy')
  await leavesAllAsItWas(storage.folder, () =>
    assert.rejects(bandsox.snapshots.restore(snapshot, { name: 'copy', unique: true }), hasCode('name-taken')),
  )
  await copy.delete({ force: true })
})

test('a hook that fails refuses the snapshot, and leaves all as it was', async () => {
  await hook('snapshot', '20-refuse', 'echo not now >&2; exit 3')
  await leavesAllAsItWas(storage.folder, () =>
    assert.rejects(source.snapshot({ name: 'refused' }), hasCode('hook-failed', /20-refuse[\s\S]*not now/)),
  )
  await countsOn(source)
  await source.exec(['rm', `${HOOKS}/snapshot.d/20-refuse`]).wait()
  await hook('snapshot', '20-slow', 'sleep 600')
  await leavesAllAsItWas(storage.folder, () =>
    assert.rejects(source.snapshot({ hooksTimeoutMs: 500 }), hasCode('hook-failed', /20-slow/)),
  )
  await countsOn(source)
  await source.exec(['rm', `${HOOKS}/snapshot.d/20-slow`]).wait()
})

test('wrong options are refused before anything stands still', async () => {
  await leavesAllAsItWas(storage.folder, async () => {
    await assert.rejects(source.snapshot({ name: 'no/slash' }), hasCode('bad-request'))
    await assert.rejects(source.snapshot({ hooksTimeoutMs: -1 }), hasCode('bad-request', /hooksTimeoutMs: -1/))
    await assert.rejects(source.snapshot({ signal: AbortSignal.abort(new Error('enough')) }), { message: 'enough' })
    await assert.rejects(bandsox.snapshots.restore(snapshot, { env: { 'A=B': 'x' } }), hasCode('bad-request'))
    await assert.rejects(bandsox.snapshots.restore(snapshot, { bootTimeoutMs: 0 }), hasCode('bad-request'))
    await assert.rejects(bandsox.snapshots.restore('nobody'), hasCode('not-found'))
    if (!isOnFirecracker)
      await assert.rejects(source.snapshot({ diff: true }), { code: /wrong-state|host-unsupported/ })
  })
  await countsOn(source)
})

test('a paused one can be saved and stays paused; what is restored of that runs', async () => {
  await source.exec(['sync']).wait() // a pause does not wait long for a disk that is slow to sync: then nobody is frozen
  await source.pause()
  const info = await source.snapshot()
  assert.equal(info.isFrozen, true)
  assert.equal((await source.info()).state.kind, 'paused')
  const copy = await bandsox.snapshots.restore(info.id)
  await countsOn(copy)
  await source.resume()
  await countsOn(source)
  await copy.delete({ force: true })
  assert.equal(await bandsox.snapshots.delete(info.id), info.id)
})

test('it can be restored when its source is long gone', async () => {
  assert.deepEqual(
    seen,
    seen.map((_, index) => index + 1),
    'the output of the source has a gap',
  )
  await source.delete({ force: true })
  const copy = await bandsox.snapshots.restore(snapshot)
  assert.ok((await counted(copy)) >= countBefore)
  await countsOn(copy)
  await copy.delete({ force: true })
  assert.equal(await bandsox.snapshots.delete(snapshot), snapshot)
  assert.deepEqual(await bandsox.snapshots.list({ templates: true }), [])
  await storage.assertNothingLeft()
})
