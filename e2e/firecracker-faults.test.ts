/** A Firecracker that crashes, hangs, panics or keeps silent at each step, and its manager, shim or VMM killed at any moment. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { BandSoxError } from 'bandsox'
import { LocalBandSox } from 'bandsox/internal/sandbox/local-bandsox.js'
import type { JailerMode } from 'bandsox/internal/vmm/firecracker/host.js'
import { driverOn, machineBeside, openOn, standInHost } from './support/firecracker.js'
import { boundedOrFull } from './support/scale.js'
import { namesIn, processesIn, type TestStorage, temporaryStorage, until, VMM_PROGRAM } from './support/storage.js'

const jailer: JailerMode = process.getuid?.() === 0 ? 'on' : 'off'
const disk = { diskMib: 64 }
/** Of a machine, in its directory. */
const FOLDERS = ['jail', 'vmm']

/** What a start must say of each fault: its own word, why, and nothing left. */
const faults: readonly [flags: string[], says: RegExp][] = [
  [['crash-at=start'], /cannot boot sandbox .*: the VMM exited with 148 .*crashed at start/s],
  [['crash-at=InstanceStart'], /cannot boot sandbox .*: the VMM exited with 148 /],
  [['guest-panics'], /cannot boot sandbox .*: the VMM exited with 0 .*the guest's kernel panicked: /],
  [['guest-silent'], /cannot boot sandbox .* within 3000 ms: /],
  [['no-kvm'], /cannot boot sandbox .*: the VMM exited with \d+ .*the VMM said: .*KVM/i],
]

for (const [flags, says] of faults)
  test(`a start says what happened when there is ${flags.join(', ')}, and leaves nothing`, async () => {
    await using storage = await temporaryStorage()
    await using host = await standInHost({ jailer, flags: flags.flatMap((flag) => ['--stand-in-fault', flag]) })
    await using bandsox = await openOn(host, storage.folder)
    await assert.rejects(bandsox.create('bandsox/base', { ...disk, bootTimeoutMs: 3_000 }), (error: unknown) => {
      assert.ok(error instanceof BandSoxError, String(error))
      assert.match(error.message, says)
      assert.ok(error.hint !== undefined)
      return true
    })
    await nothingLeft(storage)
  })

test('a release that is too old is refused before anything is made', async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer, flags: ['--stand-in-version', '1.9.1'] })
  await using bandsox = await openOn(host, storage.folder)
  await assert.rejects(bandsox.create('bandsox/base', disk), /Firecracker 1\.9\.1 is too old: 1\.10\.0 or newer/)
  await nothingLeft(storage)
})

test('without vsock, and when vsock dies, everything goes on over the serial line', async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer, flags: ['--stand-in-fault', 'vsock-dies=5000'] })
  await using bandsox = await openOn(host, storage.folder)
  await using sandbox = await bandsox.create('bandsox/base', disk)
  const name = jailer === 'on' ? '/file' : `/tmp/bandsox-stand-in-${process.pid}`
  assert.equal((await sandbox.files.write(name, 'over vsock')).link, 'vsock')
  await until(async () => (await sandbox.files.write(name, 'over the serial line')).link === 'serial', 'vsock to die')
  assert.equal(String(await sandbox.files.read(name)), 'over the serial line')
  await using off = await bandsox.create('bandsox/base', { ...disk, vsock: 'off' })
  assert.equal((await off.files.write(name, 'x')).link, 'serial')
})

test('a release that loses vsock with a pause, 1.16, is kept from it', async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer, flags: ['--stand-in-version', '1.16.1'] })
  await using bandsox = await openOn(host, storage.folder)
  await using sandbox = await bandsox.create('bandsox/base', disk)
  const name = jailer === 'on' ? '/file' : `/tmp/bandsox-stand-in-${process.pid}`
  for (let round = 0; round < 3; round++) {
    await sandbox.pause()
    await sandbox.resume()
    assert.equal((await sandbox.files.write(name, 'after', { link: 'vsock' })).link, 'vsock')
  }
})

test('where vsock is lost with a pause all the same, everything goes on over the serial line', async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer, flags: ['--stand-in-fault', 'vsock-after-pause'] })
  await using bandsox = await openOn(host, storage.folder)
  await using sandbox = await bandsox.create('bandsox/base', disk)
  const name = jailer === 'on' ? '/file' : `/tmp/bandsox-stand-in-${process.pid}`
  assert.equal((await sandbox.files.write(name, 'before')).link, 'vsock')
  await sandbox.pause()
  await sandbox.resume()
  assert.equal((await sandbox.files.write(name, 'after')).link, 'serial')
  assert.equal(String(await sandbox.files.read(name)), 'after')
})

test('a pause that a busy Firecracker answers late is a pause all the same', async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer, flags: ['--stand-in-fault', 'api-slow=2500'] })
  await using bandsox = await openOn(host, storage.folder)
  await using sandbox = await bandsox.create('bandsox/base', disk)
  await sandbox.pause()
  assert.equal((await sandbox.info()).state.kind, 'paused')
  await sandbox.resume()
  assert.equal((await sandbox.info()).state.kind, 'running')
  assert.equal((await sandbox.files.stat('/')).type, 'directory')
})

/** What a load must say of each fault; and a save. */
const stateFaults: readonly [step: string, says: RegExp][] = [
  ['crash-at=PUT /snapshot/load', /PUT \/snapshot\/load.*the VMM exited with 148/],
  ['crash-at=start', /the VMM exited with 148/],
  ['crash-at=PUT /snapshot/create', /PUT \/snapshot\/create/],
]

for (const [fault, says] of stateFaults)
  test(`a state that cannot be saved or loaded, since there is ${fault}, leaves no half of anything`, async () => {
    await using storage = await temporaryStorage()
    await using sound = await standInHost({ jailer })
    await using faulty = await standInHost({ jailer, flags: ['--stand-in-fault', fault] })
    const isSave = fault.endsWith('create')
    await using bandsox = await openOn(isSave ? faulty : sound, storage.folder)
    const sandbox = await bandsox.create('bandsox/base', disk)
    const { directory, id, vsock } = await sandbox.info()
    assert.ok(vsock)
    const folder = path.join(storage.folder, 'state')
    await mkdir(folder, { mode: 0o700 })
    const saver = await driverOn(isSave ? faulty : sound, storage.folder)
    const loader = await driverOn(faulty, storage.folder)
    await sandbox.pause()
    const machine = await saver.vmm.attach(directory)
    if (isSave) {
      await assert.rejects(machine.saveState(folder, 'full'), says)
      assert.deepEqual(namesIn(folder), [])
    } else {
      const state = await machine.saveState(folder, 'full')
      const spec = await machineBeside({ directory, id }, { cid: 100, port: vsock.port })
      await assert.rejects(loader.vmm.load(spec, state), (error: unknown) => {
        assert.ok(error instanceof BandSoxError, String(error))
        assert.match(error.message, says)
        return true
      })
      const isLeft = () => processesIn(storage.folder).some(({ cwd }) => cwd.includes(spec.sandboxId))
      await until(() => !isLeft(), 'the shim to end, which has told all by now')
      assert.deepEqual(
        namesIn(spec.directory).filter((name) => FOLDERS.includes(name) || name.endsWith('.sock')),
        [],
      )
      await rm(spec.directory, { recursive: true })
    }
    machine.close()
    saver.close()
    loader.close()
    await sandbox.delete({ force: true })
    await nothingLeft(storage, [id])
  })

test('a start whose shim cannot be started leaves no folder of the machine', async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer })
  await using bandsox = await openOn(host, storage.folder)
  const sandbox = await bandsox.create('bandsox/base', disk)
  await sandbox.stop()
  await using broken = await LocalBandSox.open({ ...host.config(storage.folder), shimPath: '/no/shim' })
  await assert.rejects((await broken.get(sandbox.id)).start(), /cannot start the shim/)
  assert.deepEqual(
    namesIn((await sandbox.info()).directory).filter((name) => FOLDERS.includes(name)),
    [],
  )
  await sandbox.delete()
  await nothingLeft(storage)
})

test('a machine boots whatever the umask is', async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer })
  const usual = process.umask(0o077)
  try {
    await using bandsox = await openOn(host, storage.folder)
    await using sandbox = await bandsox.create('bandsox/base', disk)
    assert.equal((await sandbox.info()).state.kind, 'running')
  } finally {
    process.umask(usual)
  }
})

test('a start takes the Firecracker that is there now, not the one of the start before', async () => {
  await using storage = await temporaryStorage()
  await using before = await standInHost({ jailer, flags: ['--stand-in-version', '1.12.1'] })
  await using after = await standInHost({ jailer, flags: ['--stand-in-version', '1.15.1'] })
  await using one = await openOn(before, storage.folder)
  const sandbox = await one.create('bandsox/base', disk)
  await sandbox.stop()
  await using other = await openOn(after, storage.folder)
  await using again = await other.get(sandbox.id)
  await again.start()
  const { vmm, vmmPid } = await again.info()
  assert.match(vmm, /1\.15\.1/)
  assert.match((await readFile(`/proc/${vmmPid}/exe`)).subarray(-200).toString('latin1'), /1\.15\.1/)
})

test('a VMM that has removed its own log can be taken over, used and ended', async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer })
  await using bandsox = await openOn(host, storage.folder)
  const sandbox = await bandsox.create('bandsox/base', disk)
  const { directory } = await sandbox.info()
  const { monitor } = JSON.parse(await readFile(`${directory}/shim.json`, 'utf8')) as { monitor: { socket: string } }
  for (const fifo of ['log', 'metrics']) await rm(path.join(directory, path.dirname(monitor.socket), fifo))
  const shim = processesIn(storage.folder).find(({ program }) => program.startsWith('bandsox-shim'))
  assert.ok(shim)
  process.kill(shim.pid, 'SIGKILL')
  assert.equal((await sandbox.files.stat('/')).type, 'directory')
  await sandbox.delete({ force: true })
  await nothingLeft(storage)
})

const kills = boundedOrFull(6, 40)

test(`a manager that is killed at ${kills} moments of a start leaves nothing after the next look`, async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer })
  const creator = fileURLToPath(new URL('./support/firecracker-create.js', import.meta.url))
  for (let index = 0; index < kills; index++) {
    const child = spawn(process.execPath, [creator, storage.folder, host.folder, jailer], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    await once(child.stdout, 'data') // it is about to create
    const afterMs = 5 + (index * 200) / kills
    setTimeout(() => child.kill('SIGKILL'), afterMs)
    await once(child, 'close')
    await until(async () => {
      await using bandsox = await openOn(host, storage.folder)
      for (const { id } of await bandsox.list()) await (await bandsox.get(id)).delete({ force: true })
      return namesIn(`${storage.folder}/vms`).length === 0
    }, `a start killed after ${afterMs} ms to be cleaned up`)
    await nothingLeft(storage)
  }
})

test(`a manager that is killed at ${kills} moments of a load leaves nothing after a cleaning up`, async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer })
  await using bandsox = await openOn(host, storage.folder)
  const sandbox = await bandsox.create('bandsox/base', disk)
  const { directory, id, vsock } = await sandbox.info()
  assert.ok(vsock)
  const folder = path.join(storage.folder, 'state')
  await mkdir(folder, { mode: 0o700 })
  const { vmm, close } = await driverOn(host, storage.folder)
  await sandbox.pause()
  const machine = await vmm.attach(directory)
  const state = await machine.saveState(folder, 'full')
  machine.close()
  close()
  const loader = fileURLToPath(new URL('./support/firecracker-load.js', import.meta.url))
  for (let index = 0; index < kills; index++) {
    const spec = await machineBeside({ directory, id }, { cid: 100, port: vsock.port })
    const args = [loader, storage.folder, host.folder, jailer, JSON.stringify({ spec, state })]
    const child = spawn(process.execPath, args, { stdio: ['ignore', 'pipe', 'inherit'] })
    await once(child.stdout, 'data')
    const afterMs = 5 + (index * 120) / kills
    setTimeout(() => child.kill('SIGKILL'), afterMs)
    await once(child, 'close')
    // It is no sandbox, so nothing but a cleaning up knows of it.
    const isLeft = () => processesIn(storage.folder).some(({ cwd }) => cwd.includes(spec.sandboxId))
    await until(async () => {
      await using cleaning = await LocalBandSox.open({ ...host.config(storage.folder), reconcile: 'all' })
      return (
        (await cleaning.list()).length === 1 && !isLeft() && !namesIn(path.dirname(directory)).includes(spec.sandboxId)
      )
    }, `a load killed after ${afterMs} ms to be cleaned up`)
    assert.ok(!namesIn('/sys/fs/cgroup/bandsox').includes(spec.sandboxId))
  }
  await sandbox.delete({ force: true })
  await nothingLeft(storage, [id])
})

for (const victim of ['shim', 'VMM', 'shim and VMM'] as const)
  test(`a start whose ${victim} is killed fails with a reason, and leaves nothing`, async () => {
    await using storage = await temporaryStorage()
    await using host = await standInHost({ jailer, flags: ['--stand-in-fault', 'boot-takes=600'] })
    let killed = 0
    const rounds = boundedOrFull(3, 20)
    for (let index = 0; index < rounds; index++) {
      await using bandsox = await openOn(host, storage.folder)
      const created = bandsox.create('bandsox/base', { ...disk, bootTimeoutMs: 8_000 }).then(
        (sandbox) => sandbox,
        (error: unknown) => error,
      )
      const isVictim = (program: string) =>
        (victim.includes('VMM') && (VMM_PROGRAM.test(program) || program === 'jailer')) ||
        (victim.includes('shim') && program.startsWith('bandsox-shim'))
      await until(() => processesIn(storage.folder).some(({ program }) => isVictim(program)), 'the victim to be there')
      await new Promise((resolve) => setTimeout(resolve, (index * 400) / rounds)) // before the guest answers
      const victims = processesIn(storage.folder).filter(({ program }) => isVictim(program))
      for (const { pid } of victims) process.kill(pid, 'SIGKILL')
      killed += victims.length
      const outcome = await created
      // A shim that was killed is replaced, and the machine goes on; of one whose VMM was killed nothing comes.
      // (A jailer that is just leaving for its jail is nobody's to be seen.)
      if (victim !== 'shim' && victims.length > 0)
        assert.ok(outcome instanceof BandSoxError && outcome.hint !== undefined, String(outcome))
      else if (outcome instanceof Error) assert.ok(outcome instanceof BandSoxError, outcome.stack)
      const ids = namesIn(`${storage.folder}/vms`)
      for (const { id } of await bandsox.list()) await (await bandsox.get(id)).delete({ force: true })
      await nothingLeft(storage, ids)
    }
    assert.ok(killed > 0)
  })

/** @param ids Of the sandboxes that were made, where they are known. */
async function nothingLeft(storage: TestStorage, ids: readonly string[] = []): Promise<void> {
  await storage.assertNothingLeft()
  // (Where this host has no control groups, none can be left: ids are of machines that had them elsewhere.)
  const left = namesIn('/sys/fs/cgroup/bandsox').filter((name) => ids.includes(name))
  assert.deepEqual(left, [], 'control groups left behind')
}
