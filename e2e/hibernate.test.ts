/** A sandbox whose machine lies on the disk, and whatever wakes it up, or gives it up. */
import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import type { Sandbox, SandboxInfo } from 'bandsox'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { cli } from './support/command-line.js'
import {
  COUNTER,
  counted,
  countsOn,
  flip,
  leavesAllAsItWas,
  type Opened,
  openWith,
  output,
} from './support/snapshots.js'
import { processesIn, type TestStorage, temporaryStorage, until } from './support/storage.js'

let storage: TestStorage
let opened: Opened
let sandbox: Sandbox
let directory: string

before(async () => {
  storage = await temporaryStorage()
  opened = await openWith(storage.folder)
  sandbox = await opened.bandsox.create('bandsox/base', { memoryMib: 128, diskMib: 64, name: 'sleeper' })
  directory = (await sandbox.info()).directory
  await output(sandbox, `setsid sh -c '${COUNTER}' > /dev/null 2>&1 < /dev/null & echo kept > /dev/shm/in-memory`)
  await until(async () => (await counted(sandbox).catch(() => 0)) > 3, 'it to count')
})
after(async () => {
  await opened[Symbol.asyncDispose]()
  await storage[Symbol.asyncDispose]()
})

const stateFolder = () => path.join(directory, 'hibernated')

async function isAsleep(): Promise<SandboxInfo> {
  await until(() => processesIn(storage.folder).length === 0, 'VMM and shim to end')
  const info = await sandbox.info()
  assert.deepEqual([info.state.kind, info.vmmPid, info.vsock], ['hibernated', null, null])
  assert.ok(existsSync(stateFolder()))
  assert.deepEqual(
    (await opened.bandsox.list()).map(({ id, state }) => [id, state.kind]),
    [[sandbox.id, 'hibernated']],
  )
  return info
}

async function isAwake(from: number): Promise<void> {
  assert.equal((await sandbox.info()).state.kind, 'running')
  assert.ok(!existsSync(stateFolder()), 'what it was loaded from is gone')
  assert.ok((await counted(sandbox)) >= from)
  await countsOn(sandbox)
  assert.equal(await output(sandbox, 'cat /dev/shm/in-memory'), 'kept')
}

test('nothing of it is in memory, and whoever uses it wakes it up, once', async () => {
  const before = await counted(sandbox)
  const slept = await cli(storage.folder, ['vm', 'hibernate', 'sleeper'])
  assert.equal(slept.status, 0, slept.stderr)
  await isAsleep()
  assert.match((await cli(storage.folder, ['vm', 'list'])).stdout, /sleeper.*hibernated/)
  await assert.rejects(sandbox.snapshot(), hasCode('wrong-state', /it is hibernated; snapshot needs/))
  await assert.rejects(sandbox.pause(), hasCode('wrong-state'))
  await assert.rejects(sandbox.hibernate(), hasCode('wrong-state'))
  await sandbox.rename('asleep')

  // Four at once, one of them another process.
  const answers = await Promise.all([
    ...['one', 'two'].map((word) => output(sandbox, `echo ${word}; cat /proc/sys/kernel/random/boot_id`)),
    sandbox.files.read('/dev/shm/in-memory').then((content) => Buffer.from(content).toString()),
    cli(storage.folder, ['exec', 'asleep', 'hostname']).then(({ stdout }) => stdout),
  ])
  assert.equal(answers[0]?.replace('one', ''), answers[1]?.replace('two', ''))
  assert.deepEqual(answers.slice(2), ['kept\n', 'asleep\n'])
  assert.equal(processesIn(storage.folder).filter(({ program }) => /^(qemu|firecracker)/.test(program)).length, 1)
  await isAwake(before)
})

test('who asks for something just while it falls asleep wakes it up, and who gives up does not wait', async () => {
  const before = await counted(sandbox)
  let isOver = false
  const sleeping = sandbox.hibernate().finally(() => {
    isOver = true
  })
  // What was asked for before goes on in the saved machine, without its host.
  await until(async () => (await sandbox.info()).operation?.name === 'hibernate', 'it to begin')
  const asked: Promise<unknown>[] = []
  const given = new Error('enough')
  while (!isOver) {
    asked.push(sandbox.exec(['true']).wait(), sandbox.files.stat('/root'))
    const impatient = sandbox.exec(['true'], { signal: AbortSignal.timeout(5) }).wait()
    await assert.rejects(impatient, { name: 'TimeoutError' })
    for (const each of asked) each.catch(() => undefined) // looked at when all have been asked for
  }
  await sleeping
  const failed = (await Promise.allSettled(asked)).filter(({ status }) => status === 'rejected')
  assert.deepEqual(failed, [])
  assert.ok(asked.length > 5, `${asked.length} were asked for`)
  await isAwake(before)
  await sandbox.hibernate()
  await assert.rejects(sandbox.exec(['true'], { signal: AbortSignal.abort(given) }).wait(), (error) => error === given)
  await isAsleep()
  await sandbox.resume()
})

test('resume and start wake it up as well, also one that was paused before', async () => {
  const before = await counted(sandbox)
  await sandbox.pause()
  await sandbox.hibernate()
  await isAsleep()
  await sandbox.resume()
  await isAwake(before)
  await sandbox.hibernate()
  await sandbox.start()
  await isAwake(before)
})

test('a state that is damaged is named, starts nothing, and can be given up', async () => {
  await output(sandbox, 'echo on-disk > /root/file; sync')
  await sandbox.hibernate()
  await isAsleep()
  await flip(path.join(stateFolder(), 'memory'), 50_000_000)
  await leavesAllAsItWas(storage.folder, async () => {
    const isNamed = hasCode(
      'snapshot-damaged',
      new RegExp(`memory of the hibernated sandbox ${sandbox.id} has the digest`),
    )
    await assert.rejects(sandbox.resume(), isNamed)
    await assert.rejects(sandbox.exec(['true']).wait(), isNamed)
  })
  await isAsleep()
  await flip(path.join(stateFolder(), 'memory'), 50_000_000)
  await isAsleep()
  await sandbox.stop()
  assert.equal((await sandbox.info()).state.kind, 'stopped')
  assert.ok(!existsSync(stateFolder()))
  await sandbox.start()
  assert.equal(await output(sandbox, 'cat /root/file; ls /dev/shm'), 'on-disk')
})

test('restart begins anew, delete needs no force, and a hook can refuse', async () => {
  await output(sandbox, 'echo kept > /dev/shm/in-memory')
  await sandbox.hibernate()
  await sandbox.restart()
  assert.equal(await output(sandbox, 'cat /root/file; ls /dev/shm'), 'on-disk')
  assert.ok(!existsSync(stateFolder()))
  await sandbox.files.write('/etc/bandsox/hooks/snapshot.d/refuse', '#!/bin/sh\nexit 1\n', { mode: 0o755 })
  await leavesAllAsItWas(storage.folder, () => assert.rejects(sandbox.hibernate(), hasCode('hook-failed', /refuse/)))
  assert.ok(!existsSync(`${stateFolder()}.new`))
  await output(sandbox, 'rm /etc/bandsox/hooks/snapshot.d/refuse; sync')
  await sandbox.hibernate()
  await sandbox.delete()
  await storage.assertNothingLeft()
})
