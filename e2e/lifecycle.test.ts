/** Ends of every kind: asked for, forced, or by the death of one of the processes; each leaves a known state. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { BandSoxError, openBandSox, type Sandbox } from 'bandsox'
import { startCli } from './support/command-line.js'
import { boundedOrFull } from './support/scale.js'
import { isOnFirecracker, namesIn, processesIn, temporaryStorage, until, VMM_PROGRAM } from './support/storage.js'

const pidOf = (folder: string, program: RegExp): number => {
  const found = processesIn(folder).find((process) => program.test(process.program))
  assert.ok(found, `no ${program} runs in ${folder}: ${JSON.stringify(processesIn(folder))}`)
  return found.pid
}

const stateOf = async (sandbox: Sandbox): Promise<string> => (await sandbox.info()).state.kind

test('stop asks the agent: what was written is on the disk, and numbers, sockets and processes are gone', async () => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  const sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
  await sandbox.exec('echo precious > /root/file').wait()
  await sandbox.stop()
  const info = await sandbox.info()
  assert.equal(info.state.kind, 'stopped')
  assert.equal(info.vsock, null)
  await until(() => processesIn(storage.folder).length === 0, 'the shim, which has said all, to end')
  const leftInFolder = namesIn(info.directory).filter((name) =>
    /\.sock$|console\.(in|out)$|\.err$|^operation/.test(name),
  )
  assert.deepEqual(leftInFolder, [], 'sockets, FIFOs or locks left in the folder')
  assert.deepEqual(namesIn(path.join(info.directory, 'vsock')), [], 'vsock sockets left')
  const disk = await readFile(path.join(info.directory, 'overlay.ext4'))
  assert.ok(disk.includes('precious'))
  await assert.rejects(
    sandbox.exec(['true']).wait(),
    (error) => error instanceof BandSoxError && error.code === 'wrong-state',
  )
  await sandbox.delete()
  await storage.assertNothingLeft()
})

test('pause halts the guest, resume lets it go on, and a paused one can be stopped', async () => {
  await using storage = await temporaryStorage()
  const sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base', { diskMib: 64 })
  await sandbox.exec('(while :; do date +%s%N > /tmp/tick; done) > /dev/null 2>&1 &').wait()
  await sandbox.pause()
  assert.equal(await stateOf(sandbox), 'paused')
  await assert.rejects(sandbox.exec(['true']).wait(), /cannot exec sandbox .*: it is paused/)
  await assert.rejects(sandbox.pause(), /cannot pause/)
  await sandbox.resume()
  assert.equal((await sandbox.exec(['echo', 'on']).collect()).stdout, 'on\n')
  await sandbox.exec('echo unsynced > /root/file').wait()
  await sandbox.pause()
  await sandbox.stop()
  assert.ok((await readFile(path.join((await sandbox.info()).directory, 'overlay.ext4'))).includes('unsynced'))
  assert.equal(await stateOf(sandbox), 'stopped')
  await sandbox.delete()
  await storage.assertNothingLeft()
})

test('a killed VMM is noticed: the sandbox has failed, says how, and holds nothing', async () => {
  await using storage = await temporaryStorage()
  const sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
  const job = sandbox.exec(['sleep', '600'])
  const waiting = job.wait()
  await until(async () => (await sandbox.jobs()).length === 1, 'the command to run')
  await Promise.all([
    assert.rejects(waiting, (error) => error instanceof BandSoxError && error.code === 'link-lost'),
    (async () => process.kill(pidOf(storage.folder, VMM_PROGRAM), 'SIGKILL'))(),
  ])
  await until(() => processesIn(storage.folder).length === 0, 'shim and daemon to follow')
  const { state, vsock } = await sandbox.info()
  assert.ok(state.kind === 'failed' && /SIGKILL/.test(state.reason), JSON.stringify(state))
  assert.equal(vsock, null)
  await sandbox.delete()
  await storage.assertNothingLeft()
})

test('a killed shim is replaced, and the VM runs on through it', async () => {
  await using storage = await temporaryStorage()
  const sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
  await sandbox.exec('echo 7 > /dev/shm/kept').wait()
  const vmm = pidOf(storage.folder, VMM_PROGRAM)
  process.kill(pidOf(storage.folder, /^bandsox-shim/), 'SIGKILL')
  await until(() => !processesIn(storage.folder).some(({ program }) => program === 'bandsox-shim'), 'the shim to die')
  assert.equal((await sandbox.exec(['cat', '/dev/shm/kept']).collect()).stdout, '7\n')
  assert.equal(await stateOf(sandbox), 'running')
  assert.equal(pidOf(storage.folder, VMM_PROGRAM), vmm)
  pidOf(storage.folder, /^bandsox-shim/)
  await sandbox.stop()
  await sandbox.delete()
  await storage.assertNothingLeft()
})

test('storage folders do not know of each other, and their sandboxes run side by side all the same', async () => {
  await using storage = await temporaryStorage()
  await using other = await temporaryStorage()
  await using first = await (await openBandSox({ storage: storage.folder })).create('bandsox/base', { name: 'first' })
  await using second = await (await openBandSox({ storage: other.folder })).create('bandsox/base', { name: 'second' })
  const [one, two] = [(await first.info()).vsock, (await second.info()).vsock]
  // The kernel's CIDs are the whole host's; a daemon's are its own.
  if (one?.backend === 'kernel') assert.notEqual(one.cid, two?.cid)
  assert.equal((await first.exec(['hostname']).collect()).stdout, 'first\n')
  assert.equal((await second.exec(['hostname']).collect()).stdout, 'second\n')
  await first.delete({ force: true })
  await second.delete({ force: true })
  await storage.assertNothingLeft()
  await other.assertNothingLeft()
})

test('VMM and shim killed together leave a failed sandbox and no daemon', async () => {
  await using storage = await temporaryStorage()
  const sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
  process.kill(pidOf(storage.folder, /^bandsox-shim/), 'SIGKILL')
  process.kill(pidOf(storage.folder, VMM_PROGRAM), 'SIGKILL')
  await until(
    () =>
      !processesIn(storage.folder).some(
        ({ program }) => VMM_PROGRAM.test(program) || program.startsWith('bandsox-shim'),
      ),
    'both to die',
  )
  // A process has no program any more a moment before it is dead.
  await until(async () => (await stateOf(sandbox)) === 'failed', 'its end to be known')
  await until(() => processesIn(storage.folder).length === 0, 'the daemon to be ended')
  await sandbox.delete()
  await storage.assertNothingLeft()
})

test('the death of the vsock daemon leaves the serial line, and that of both the power button, which ends the VM in order', async (t) => {
  await using storage = await temporaryStorage()
  const made = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
  // Another that has no connection yet, as in another process.
  const again = async () => await (await openBandSox({ storage: storage.folder })).get(made.id)
  if ((await made.info()).vsock?.backend !== 'daemon') {
    await made.delete({ force: true })
    return t.skip('this host has the vsock backend of the kernel: there is no daemon')
  }
  await made.exec('echo written > /root/before').wait()
  process.kill(pidOf(storage.folder, /^vhost-device/), 'SIGKILL')
  await until(
    () => !processesIn(storage.folder).some(({ program }) => /^vhost-device/.test(program)),
    'the daemon to die',
  )
  assert.equal((await (await again()).exec(['true']).collect()).link, 'serial')
  await rm(path.join((await made.info()).directory, 'serial.sock'))
  const sandbox = await again()
  await assert.rejects(
    sandbox.exec(['true']).wait(),
    (error) => error instanceof BandSoxError && /^link-/.test(error.code),
  )
  assert.equal(await stateOf(sandbox), 'running')
  await sandbox.stop()
  const exit = JSON.parse(await readFile(path.join((await sandbox.info()).directory, 'exit.json'), 'utf8')) as {
    code?: number
  }
  assert.equal(exit.code, 0, 'the VMM ended by the end of its guest')
  await sandbox.delete()
  await storage.assertNothingLeft()
})

test('a guest that powers itself off has stopped', async () => {
  await using storage = await temporaryStorage()
  const sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
  await sandbox
    // A power-off halts a Firecracker's guest, and nothing ends it then: what it has is a reset.
    .exec(isOnFirecracker ? 'reboot -f' : 'poweroff -f')
    .wait()
    .catch(() => undefined) // the connection ends with the guest, sooner or later
  await until(async () => (await stateOf(sandbox)) !== 'running', 'the end to be noticed')
  assert.equal(await stateOf(sandbox), 'stopped')
  await sandbox.delete()
  await storage.assertNothingLeft()
})

const kills = boundedOrFull(6, 60)

test(`a create that is killed at ${kills} moments leaves nothing after the next command`, async () => {
  await using storage = await temporaryStorage()
  for (let index = 0; index < kills; index++) {
    // From the start of the program to a while before the guest answers.
    const afterMs = 200 + (index * 1_500) / kills
    const child = startCli(storage.folder, ['create', 'bandsox/base'])
    setTimeout(() => child.kill('SIGKILL'), afterMs)
    await once(child, 'close')
    await until(async () => {
      await (await openBandSox({ storage: storage.folder })).list()
      return namesIn(path.join(storage.folder, 'vms')).length === 0
    }, `a create killed after ${afterMs} ms to be cleaned up`)
    await storage.assertNothingLeft()
  }
})

test('Ctrl-C during create removes what was made, and says so by its status', async () => {
  await using storage = await temporaryStorage()
  const child = startCli(storage.folder, ['create', 'bandsox/base'])
  await until(
    () => processesIn(storage.folder).some(({ program }) => VMM_PROGRAM.test(program)),
    'the VMM to start',
    60_000,
  )
  child.kill('SIGINT')
  const [status] = (await once(child, 'close')) as [number]
  assert.equal(status, 130)
  await storage.assertNothingLeft()
})

test('a sandbox outlives the process that made it, and another finds it by id, prefix and name', async () => {
  await using storage = await temporaryStorage()
  const child = startCli(storage.folder, ['create', 'bandsox/base', '--name', 'outlives'])
  const [status] = (await once(child, 'close')) as [number]
  assert.equal(status, 0)
  const bandsox = await openBandSox({ storage: storage.folder })
  const byName = await bandsox.get('outlives')
  assert.equal((await bandsox.get(byName.id.slice(0, 7))).id, byName.id)
  assert.equal((await bandsox.get(byName.id.slice(4, 8))).id, byName.id)
  await assert.rejects(byName.delete(), /cannot delete sandbox .*: it is running/)
  await byName.delete({ force: true })
  await assert.rejects(bandsox.get('outlives'), (error) => error instanceof BandSoxError && error.code === 'not-found')
  await storage.assertNothingLeft()
})

test('a machine that cannot boot gives the reason and leaves nothing', async () => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  await assert.rejects(bandsox.create('bandsox/base', { bootTimeoutMs: 200 }), (error) => {
    assert.ok(error instanceof BandSoxError)
    assert.equal(error.code, 'agent-unreachable')
    assert.match(error.message, /within 200 ms/)
    return true
  })
  await storage.assertNothingLeft()
  await assert.rejects(
    bandsox.create('no/such/image', { pull: 'never' }),
    (error) => error instanceof BandSoxError && error.code === 'image-not-found',
  )
  await assert.rejects(
    bandsox.create('bandsox/base', { memoryMib: 1 }),
    (error) => error instanceof BandSoxError && error.code === 'bad-request',
  )
  await storage.assertNothingLeft()
})
