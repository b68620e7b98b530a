/** The daemon's vsock device comes and goes while a machine runs, as it has to for a saved state; the agent is reached all the time. */
import assert from 'node:assert/strict'
import { readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { openBandSox, type Sandbox } from 'bandsox'
import { linkStatistics, readRun } from 'bandsox/internal/process/shim.js'
import { withQmp } from 'bandsox/internal/vmm/qemu/qmp.js'
import { attachTo } from './support/machine.js'
import { boundedOrFull } from './support/scale.js'
import { onlyOnQemu, temporaryStorage, until } from './support/storage.js'

const skip = onlyOnQemu('its own vsock is in its states')

async function onDaemon(sandbox: Sandbox): Promise<boolean> {
  const { directory } = await sandbox.info()
  return (await linkStatistics(directory)).vsock?.kind === 'daemon'
}

const echoed = async (sandbox: Sandbox, link?: 'vsock' | 'serial') =>
  (await sandbox.exec(['echo', 'there'], link === undefined ? {} : { link }).collect()).stdout

/** QEMU's reasons for not saving the machine's state. */
const whatBlocksSaving = (directory: string) =>
  withQmp(path.join(directory, 'qmp.sock'), async (qmp) => {
    const answer = (await qmp.execute('query-migrate')) as { 'blocked-reasons'?: string[] }
    return answer['blocked-reasons']
  })

test('the vsock device is unplugged and plugged in again, as often as one likes', { skip }, async (t) => {
  await using storage = await temporaryStorage()
  await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
  if (!(await onDaemon(sandbox))) return t.skip('the vsock of this host is the kernel’s, which has nothing to unplug')
  const { directory } = await sandbox.info()
  await using machine = await attachTo(directory)
  const daemon = (await readRun(directory)).run?.vsock
  assert.ok(daemon)
  const took: { unplug: number; plug: number; answer: number }[] = []
  for (let round = 0; round < boundedOrFull(3, 50); round++) {
    // One that is connected by vsock when its device goes, and goes on.
    const counting = sandbox.exec('for i in $(seq 1 40); do echo $i; sleep 0.02; done').collect()
    counting.catch(() => undefined) // whatever else fails is to be told first
    assert.equal(await echoed(sandbox, 'vsock'), 'there\n')
    assert.match(String(await whatBlocksSaving(directory)), /vhost-user-vsock/)
    const began = performance.now()
    assert.equal(await machine.detachVsock(), true)
    const unplug = performance.now() - began
    assert.equal(await machine.detachVsock(), false, 'there is none')
    await assert.rejects(echoed(sandbox, 'vsock'))
    assert.equal(await echoed(sandbox, 'serial'), 'there\n')
    assert.equal(await echoed(sandbox), 'there\n')
    assert.equal((await readRun(directory)).run?.vsock?.pid, daemon.pid, 'the daemon lives')

    await sandbox.pause()
    await assert.rejects(machine.attachVsock(), { code: 'wrong-state', message: /machine that is paused/ })
    assert.equal(await whatBlocksSaving(directory), undefined)
    await sandbox.resume()

    const again = performance.now()
    await machine.attachVsock()
    const plug = performance.now() - again
    assert.equal(await echoed(sandbox, 'vsock'), 'there\n')
    took.push({ unplug, plug, answer: performance.now() - again })
    const { exitCode, stdout } = await counting
    assert.deepEqual([exitCode, stdout.split('\n').length], [0, 41])
  }
  const data = Buffer.alloc(8_000_000, 'vsock')
  await sandbox.files.write('/tmp/data', data)
  assert.ok(data.equals(await sandbox.files.read('/tmp/data')))
  assert.doesNotMatch(readFileSync(path.join(directory, 'vsock.log'), 'utf8'), /panicked/)
  t.diagnostic(
    JSON.stringify(took.map((each) => Object.fromEntries(Object.entries(each).map(([k, v]) => [k, Math.round(v)])))),
  )
})

test('a device is not taken from a machine that stands still, and keeps working after the refusal', {
  skip,
}, async (t) => {
  await using storage = await temporaryStorage()
  await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
  if (!(await onDaemon(sandbox))) return t.skip('the vsock of this host is the kernel’s, which has nothing to unplug')
  const { directory } = await sandbox.info()
  await using machine = await attachTo(directory)
  await machine.pause()
  await assert.rejects(machine.detachVsock(), {
    code: 'wrong-state',
    message: /cannot unplug the vsock device of a machine that is paused/,
    hint: /resume it first/,
  })
  await machine.resume()
  await until(async () => (await echoed(sandbox, 'vsock').catch(() => '')) === 'there\n', 'vsock to work')
})

test('what a shim has shut stays shut for the shim that takes over, and the device comes back', { skip }, async (t) => {
  await using storage = await temporaryStorage()
  await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
  if (!(await onDaemon(sandbox))) return t.skip('the vsock of this host is the kernel’s, which has nothing to unplug')
  const { directory } = await sandbox.info()
  {
    await using machine = await attachTo(directory)
    await machine.detachVsock()
  }
  const { run } = await readRun(directory)
  assert.ok(run)
  process.kill(run.shim.pid, 'SIGKILL')
  await until(async () => !(await readRun(directory)).shimAlive, 'the shim to die')
  await using machine = await attachTo(directory)
  await assert.rejects(echoed(sandbox, 'vsock'))
  assert.equal(await echoed(sandbox), 'there\n')
  await machine.attachVsock()
  assert.equal(await echoed(sandbox, 'vsock'), 'there\n')
})

test('a machine without vsock has nothing to take out or put in', { skip }, async () => {
  await using storage = await temporaryStorage()
  await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base', { vsock: 'off' })
  await using machine = await attachTo((await sandbox.info()).directory)
  assert.equal(await machine.detachVsock(), false)
  await machine.attachVsock()
  assert.equal(await echoed(sandbox), 'there\n')
})

test('one that was restored, or woken up, with vsock has it, over a memory that is its user’s, in a folder that is not', {
  skip,
}, async (t) => {
  await using storage = await temporaryStorage()
  await using bandsox = await openBandSox({ storage: storage.folder })
  await using sandbox = await bandsox.create('bandsox/base', { vsock: 'on', memoryMib: 128, diskMib: 64 })
  if (!(await onDaemon(sandbox))) return t.skip('the vsock of this host is the kernel’s, which shares no memory')
  const { id } = await sandbox.snapshot()
  await using copy = await bandsox.snapshots.restore(id)
  const isItself = async () => {
    assert.equal(await echoed(copy, 'vsock'), 'there\n')
    const { directory, vmmPid } = await copy.info()
    const folder = path.join(directory, 'shared')
    const [own, ofFolder, ofMemory] = [`/proc/${vmmPid}`, folder, path.join(folder, 'memory')].map((file) =>
      statSync(file),
    )
    assert.deepEqual([ofFolder?.uid, ofMemory?.uid], [process.getuid?.(), own?.uid])
    assert.equal((ofMemory?.mode ?? 0) & 0o777, 0o600)
  }
  await isItself()
  await copy.hibernate()
  await copy.resume()
  await isItself()
  assert.equal(await echoed(sandbox, 'vsock'), 'there\n')
})
