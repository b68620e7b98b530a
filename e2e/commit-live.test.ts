/** Commits of sandboxes that run, are paused or hibernated, of snapshots, and of what is restored of them. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { type ImageEvent, openBandSox, type Sandbox } from 'bandsox'
import { SandboxStore } from 'bandsox/internal/store/sandbox-store.js'
import { cli, startCli } from './support/command-line.js'
import { contentOf, layerOf, namesOfImages } from './support/image-files.js'
import { randomBytes } from './support/random.js'
import { boundedOrFull } from './support/scale.js'
import { namesIn, temporaryStorage, until } from './support/storage.js'

/** Of a running sandbox: for so long from when it is held, which is longer than it stands still. */
const LIVE_KILLS = boundedOrFull(2, 30)
const LIVE_KILL_SPAN_MS = 1_500
const SEED = 20_270_104
const IMAGE = 'bandsox/base'
const HOOKS = '/etc/bandsox/hooks/snapshot.d'

async function sh(sandbox: Sandbox, script: string): Promise<string> {
  const { stdout, stderr, exitCode } = await sandbox.exec(['sh', '-c', script]).collect()
  assert.equal(exitCode, 0, stderr)
  return stdout
}

/** Counts in the guest's memory, which no disk has. */
const COUNTER = '/dev/shm/counter'
const count = async (sandbox: Sandbox) => Number(await sh(sandbox, `cat ${COUNTER}`))
async function startCounter(sandbox: Sandbox): Promise<void> {
  const loop = `i=0; while :; do i=$((i+1)); echo $i > ${COUNTER}.new; mv ${COUNTER}.new ${COUNTER}; sleep 0.2; done`
  await sh(sandbox, `(${loop}) > /dev/null 2>&1 & while ! test -e ${COUNTER}; do sleep 0.05; done`)
}

test('a sandbox is committed while it runs, is paused or hibernated, and goes on; so are a snapshot, and what is restored of it', async () => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  const sandbox = await bandsox.create(IMAGE)
  await startCounter(sandbox)
  // Not synced: the standstill does that. The hook's own file is in the layer, too.
  await sh(
    sandbox,
    `mkdir -p ${HOOKS}; printf '#!/bin/sh\necho x >> /hooked\n' > ${HOOKS}/note; chmod 755 ${HOOKS}/note`,
  )
  await sh(sandbox, 'echo first > /first; rm -r /mnt')
  const hooks = ['etc', 'etc/bandsox', 'etc/bandsox/hooks', HOOKS.slice(1), `${HOOKS}/note`.slice(1)]
  const first = ['.wh.mnt', ...hooks, 'first', 'hooked'].sort()

  const events: ImageEvent[] = []
  const onEvent = (event: ImageEvent) => void events.push(event)
  const before = await count(sandbox)
  const running = await bandsox.images.commit(sandbox.id, 'test/running', { onEvent })
  const [pause, ...more] = events.filter((event) => event.kind === 'stood-still')
  assert.ok(pause !== undefined && pause.sandbox === sandbox.id && pause.pauseMs > 0 && pause.pauseMs < 10_000)
  assert.deepEqual(more, [])
  assert.deepEqual(
    events.filter((event) => event.kind === 'warning'),
    [],
  )
  assert.equal((await sandbox.info()).state.kind, 'running')
  assert.ok((await count(sandbox)) > before, 'its programs do not go on')
  assert.deepEqual((await layerOf(storage, running.image)).sort(), first)

  const snapshot = await sandbox.snapshot({ name: 'early' })
  await sh(sandbox, 'echo second > /second')
  await sandbox.pause()
  const paused = await bandsox.images.commit(sandbox.id, 'test/paused', { onEvent })
  assert.deepEqual(
    events.filter((event) => event.kind === 'warning'),
    [],
  )
  assert.equal((await sandbox.info()).state.kind, 'paused')
  const second = [...first, 'second'].sort()
  assert.deepEqual((await layerOf(storage, paused.image)).sort(), second)
  await sandbox.delete({ force: true })

  const old = await bandsox.images.commit('early', 'test/old')
  assert.deepEqual((await layerOf(storage, old.image)).sort(), first)

  // On QEMU its disk is layers: those below are the snapshot's own files.
  const restored = await bandsox.snapshots.restore('early')
  await sh(restored, 'echo third > /third; rm /first')
  const third = ['third', ...first.filter((name) => name !== 'first')].sort()
  const live = await bandsox.images.commit(restored.id, 'test/live')
  assert.deepEqual((await layerOf(storage, live.image)).sort(), third)
  await sh(restored, 'test -e /third && echo fourth > /fourth')
  const counted = await count(restored)
  await restored.hibernate()
  const hibernated = await bandsox.images.commit(restored.id, 'test/hibernated')
  assert.equal((await restored.info()).state.kind, 'hibernated')
  assert.deepEqual((await layerOf(storage, hibernated.image)).sort(), ['fourth', ...third].sort())
  assert.equal(await contentOf(storage, hibernated.image, 'third', 'fourth'), 'fourth\nthird\n')
  assert.ok((await count(restored)) >= counted, 'it does not go on from its state')
  await bandsox.snapshots.verify(snapshot.id) // nobody has written to what they share
  await restored.delete({ force: true })
  await bandsox.snapshots.delete(snapshot.id)
  assert.deepEqual(namesIn(path.join(storage.folder, 'snapshots')), [])
  await storage.assertNothingLeft()
})

test(`a commit of a running sandbox that is killed at ${LIVE_KILLS} moments of its standstill lets it go on, and leaves nothing`, async () => {
  await using storage = await temporaryStorage()
  const { folder: at } = storage
  const bandsox = await openBandSox({ storage: at })
  await bandsox.images.prune() // the storage that was prepared may have a disk of an earlier format
  const sandbox = await bandsox.create(IMAGE)
  await startCounter(sandbox)
  // A copy that takes a while: most moments hit a machine that stands still.
  await sh(sandbox, 'head -c 60000000 /dev/urandom > /random; sync')
  // So that none is over before it is seen.
  await sh(sandbox, `mkdir -p ${HOOKS}; printf '#!/bin/sh\nsleep 0.3\n' > ${HOOKS}/slow; chmod 755 ${HOOKS}/slow`)
  const before = await namesOfImages(at)
  const random = randomBytes(LIVE_KILLS * 4, SEED)
  const store = await SandboxStore.open(at)
  const isHeld = async () => (await store.read(sandbox.id))?.operation?.name === 'commit'
  let held = 0
  for (let round = 0; round < LIVE_KILLS; round++) {
    const child = startCli(at, ['image', 'commit', sandbox.id, 'test/killed'])
    child.stdout?.resume()
    child.stderr?.resume()
    const ended = once(child, 'close')
    await until(isHeld, 'the commit to hold the sandbox')
    if (round > 0) await delay((random.readUInt32LE(round * 4) / 2 ** 32) * LIVE_KILL_SPAN_MS)
    child.kill('SIGKILL')
    await ended
    if (await isHeld()) held++
    const counted = await count(sandbox)
    await until(async () => (await count(sandbox)) > counted, 'its programs to go on')
    assert.equal((await sandbox.info()).state.kind, 'running')
    assert.equal((await cli(at, ['vm', 'list'])).status, 0)
    assert.deepEqual(namesIn(path.join(at, 'vms')), [sandbox.id])
    assert.equal((await cli(at, ['image', 'prune'])).status, 0)
    assert.deepEqual(await namesOfImages(at), before)
  }
  store.close()
  assert.ok(held > 0, 'no commit was killed while the sandbox was held')
  await sandbox.delete({ force: true })
  await storage.assertNothingLeft()
})
