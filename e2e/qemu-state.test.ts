/** What the QEMU driver promises of saved states, on a real QEMU: the machine's memory in a file that many map, and nobody writes. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { readFileSync, readlinkSync, statSync } from 'node:fs'
import { copyFile, mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { test } from 'node:test'
import { isSystemError, type Sandbox } from 'bandsox'
import { readRun } from 'bandsox/internal/process/shim.js'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { withQmp } from 'bandsox/internal/vmm/qemu/qmp.js'
import { digestOf, end, type Loaded, loaded, stateHost } from './support/qemu-state.js'
import { randomBytes } from './support/random.js'
import { boundedOrFull } from './support/scale.js'
import { namesIn, temporaryStorage, until } from './support/storage.js'

const isRoot = process.getuid?.() === 0
const CLONES = boundedOrFull(3, 5)
/** Of a machine that goes on: as after a boot, since all of them want the processors at once. */
const READY_MS = 120_000
/** The descriptor by which a VMM has what it may only read: guest/internal/shim/onefile. */
const READ_ONLY_FD = 255

type Guest = Pick<Sandbox, 'exec' | 'files'>

async function output(guest: Guest, command: string): Promise<string> {
  return (await guest.exec(command).collect()).stdout.trim()
}

/** A file in the guest's memory, and a process that counts. */
async function fill(guest: Guest): Promise<void> {
  await output(guest, 'mkdir -p /mnt/memory && mount -t tmpfs none /mnt/memory && echo kept > /mnt/memory/file')
  await output(
    guest,
    'setsid sh -c "i=0; while :; do i=\\$((i+1)); echo \\$i > /mnt/memory/count.new; mv /mnt/memory/count.new /mnt/memory/count; sleep 0.05; done" > /dev/null 2>&1 < /dev/null &',
  )
  await until(async () => (await count(guest)) > 3, 'the guest to count')
}

const count = async (guest: Guest): Promise<number> => Number(await output(guest, 'cat /mnt/memory/count || echo 0'))

/** That the guest is the one that was saved, and goes on. */
async function goesOn(guest: Guest, from: number): Promise<void> {
  assert.equal(await output(guest, 'cat /mnt/memory/file'), 'kept')
  const now = await count(guest)
  assert.ok(now >= from, `the counter is at ${now}, and was at ${from}`)
  await until(async () => (await count(guest)) > now, 'the counter to go on')
}

const statusOf = async (directory: string) => (await readRun(directory)).status?.status

test(`a state is saved while the machine stands still, and ${CLONES} machines are loaded from it at once beside it`, async () => {
  await using storage = await temporaryStorage()
  {
    await using host = await stateHost(storage.folder)
    const { vmm, sandbox, machine } = host
    assert.deepEqual((await vmm.capabilities()).states, ['full'])
    await fill(sandbox)
    const before = await count(sandbox)
    await sandbox.pause()
    const folder = await host.stateFolder('state')
    const state = await machine.saveState(folder, 'full')
    assert.deepEqual(namesIn(folder), ['devices', 'memory'])
    for (const file of Object.values(state)) {
      const { mode, uid } = statSync(file)
      assert.deepEqual([mode & 0o777, uid], [0o444, process.getuid?.()])
    }
    const memory = await stat(state.memory)
    assert.equal(memory.size, 256 * 1024 * 1024)
    assert.ok(memory.blocks * 512 < memory.size, 'it is sparse')
    assert.ok((await stat(state.devices)).size < 1024 * 1024)
    assert.equal((await sandbox.info()).state.kind, 'paused')
    const specs = await Promise.all(Array.from({ length: CLONES }, (_, index) => host.beside(index)))
    const { directory } = await sandbox.info()
    assert.ok(namesIn(directory).every((name) => !name.startsWith('save-')))
    await sandbox.resume()
    await goesOn(sandbox, before)
    const digest = await digestOf(state.memory)
    const clones: Loaded[] = await Promise.all(specs.map((spec) => loaded(vmm, spec, state)))
    await Promise.all(clones.map(({ agent }) => agent.waitUntilReady({ timeoutMs: READY_MS })))
    const users = new Set<string>()
    for (const [index, { spec, agent }] of clones.entries()) {
      await goesOn(agent, before)
      assert.equal(await statusOf(spec.directory), 'running')
      const content = randomBytes(4 * 1024 * 1024, index)
      await agent.files.write('/mnt/memory/own', content)
      await agent.files.write('/root/own', content)
      await output(agent, 'sync')
      const { run } = await readRun(spec.directory)
      const process = `/proc/${run?.vmm.pid}`
      users.add(/^Uid:\s+(\d+)/m.exec(readFileSync(`${process}/status`, 'utf8'))?.[1] ?? '')
      assert.equal(readlinkSync(`${process}/fd/${READ_ONLY_FD}`), path.join(spec.directory, 'loaded/memory'))
      assert.equal(
        Number(/^flags:\s+(\d+)/m.exec(readFileSync(`${process}/fdinfo/${READ_ONLY_FD}`, 'utf8'))?.[1]) % 10,
        0,
      )
    }
    assert.equal(users.size, isRoot ? CLONES : 1)
    for (const [index, { agent }] of clones.entries()) {
      const content = randomBytes(4 * 1024 * 1024, index)
      for (const name of ['/mnt/memory/own', '/root/own'])
        assert.ok((await agent.files.read(name)).equals(content), name)
    }
    await goesOn(sandbox, before)
    assert.equal((await sandbox.exec('ls /mnt/memory/own').collect()).exitCode, 1)
    for (const clone of clones) assert.deepEqual(await end(clone), [])
    assert.equal(await digestOf(state.memory), digest)
    assert.equal((await stat(state.memory)).nlink, 1)
  }
  await storage.assertNothingLeft()
})

test('a machine is saved again, twice in a pause, and one that was loaded is saved too', async () => {
  await using storage = await temporaryStorage()
  await using host = await stateHost(storage.folder, { memoryMib: 192 })
  const { vmm, sandbox, machine } = host
  await fill(sandbox)
  const folders = ['first', 'same', 'later', 'of-clone', 'after'].map((name) => host.stateFolder(name))
  const [first = '', same = '', later = '', ofClone = '', after = ''] = await Promise.all(folders)
  await assert.rejects(machine.saveState(first, 'full'), hasCode('wrong-state', /machine that runs/))
  await assert.rejects(machine.saveState(first, 'diff'), hasCode('host-unsupported', /whole states only/))
  assert.deepEqual(namesIn(first), [])
  await sandbox.pause()
  const state = await machine.saveState(first, 'full')
  await assert.rejects(machine.saveState(first, 'full'), hasCode('bad-request', /one in it already/))
  await assert.rejects(machine.saveState(path.join(storage.folder, 'none'), 'full'), hasCode('file-not-found'))
  const again = await machine.saveState(same, 'full')
  assert.equal((await stat(again.memory)).ino, (await stat(state.memory)).ino)
  await rm(first, { recursive: true })
  const spec = await host.beside(0)
  await sandbox.resume()
  const before = await count(sandbox)
  assert.equal((await stat(again.memory)).nlink, 1, 'the room of a removed state is not held on to')
  await sandbox.pause()
  const changed = await machine.saveState(later, 'full')
  assert.notEqual((await stat(changed.memory)).ino, (await stat(again.memory)).ino)
  const changedSpec = await host.beside(1)
  await sandbox.resume()

  const clone = await loaded(vmm, spec, again, { resume: false })
  assert.equal(await statusOf(spec.directory), 'paused')
  await clone.machine.resume()
  await clone.agent.waitUntilReady({ timeoutMs: READY_MS })
  await goesOn(clone.agent, 1)
  await output(clone.agent, 'echo of the clone > /mnt/memory/file2')
  await clone.machine.pause()
  const cloned = await clone.machine.saveState(ofClone, 'full')
  const nextSpec = await host.beside(2)
  await copyFile(path.join(spec.directory, 'overlay.ext4'), path.join(nextSpec.directory, 'overlay.ext4'))
  await clone.machine.resume()
  const next = await loaded(vmm, nextSpec, cloned)
  const other = await loaded(vmm, changedSpec, changed)
  await Promise.all([next, other].map(({ agent }) => agent.waitUntilReady({ timeoutMs: READY_MS })))
  await goesOn(next.agent, 1)
  assert.equal(await output(next.agent, 'cat /mnt/memory/file2'), 'of the clone')
  await goesOn(clone.agent, 1)
  await goesOn(other.agent, before)
  for (const each of [clone, next, other]) assert.deepEqual(await end(each), [])
  // What was loaded and saved leaves nothing of that in the original.
  await sandbox.pause()
  await machine.saveState(after, 'full')
  await sandbox.stop()
  const { directory } = await sandbox.info()
  assert.ok(!namesIn(directory).includes('saved'))
})

test('a save that is given up ends at once, leaves nothing, and the machine goes on and can be saved', async () => {
  await using storage = await temporaryStorage()
  await using host = await stateHost(storage.folder)
  const { sandbox, machine } = host
  await fill(sandbox)
  const before = await count(sandbox)
  const folder = await host.stateFolder('state')
  const enough = new AbortController()
  await sandbox.pause()
  const saving = machine.saveState(folder, 'full', enough.signal)
  const begun = until(async () => namesIn(folder).includes('memory'), 'the memory to be written')
  const reason = new Error('enough')
  await Promise.race([saving, begun.then(() => enough.abort(reason))]).catch(() => undefined) // looked at below
  await assert.rejects(saving, (error) => error === reason)
  assert.deepEqual(namesIn(folder), [])
  const { directory } = await sandbox.info()
  assert.ok(namesIn(directory).every((name) => !name.startsWith('save')))
  assert.equal(await statusOf(directory), 'paused')
  await sandbox.resume()
  await goesOn(sandbox, before)
  await sandbox.pause()
  await machine.saveState(folder, 'full')
  await assert.rejects(sandbox.snapshot({ signal: AbortSignal.abort(reason) }), (error) => error === reason)
})

test('a machine whose agent is reached over its console goes on there', async () => {
  await using storage = await temporaryStorage()
  await using host = await stateHost(storage.folder, {}, 'uart')
  const { vmm, sandbox, machine } = host
  assert.equal(await output(sandbox, 'echo whole'), 'whole')
  await sandbox.pause()
  const state = await machine.saveState(await host.stateFolder('state'), 'full')
  const spec = await host.beside(0)
  await sandbox.resume()
  const clone = await loaded(vmm, spec, state)
  await clone.agent.waitUntilReady({ timeoutMs: READY_MS })
  assert.equal(await output(clone.agent, 'echo whole'), 'whole')
  assert.equal(await output(sandbox, 'echo whole'), 'whole')
  assert.deepEqual(await end(clone), [])
})

test('a loaded machine gives memory back, which its file has no part in, and survives its shim', async () => {
  await using storage = await temporaryStorage()
  await using host = await stateHost(storage.folder)
  const { vmm, sandbox, machine } = host
  await sandbox.pause()
  const state = await machine.saveState(await host.stateFolder('state'), 'full')
  const spec = await host.beside(0)
  await sandbox.resume()
  const digest = await digestOf(state.memory)
  const clone = await loaded(vmm, spec, state)
  await clone.agent.waitUntilReady({ timeoutMs: READY_MS })
  const { run } = await readRun(spec.directory)
  assert.ok(run)
  const ownMib = () =>
    Number(/^Anonymous:\s+(\d+) kB/m.exec(readFileSync(`/proc/${run.vmm.pid}/smaps_rollup`, 'utf8'))?.[1]) / 1024
  await output(clone.agent, 'mkdir /mnt/much && mount -t tmpfs none /mnt/much')
  await output(clone.agent, 'dd if=/dev/urandom of=/mnt/much/file bs=1M count=80')
  const much = ownMib()
  await output(clone.agent, 'rm /mnt/much/file')
  await clone.machine.setMemory(80)
  await until(() => ownMib() < much - 25, 'the freed memory to be given back', 30_000)
  await clone.machine.setMemory(256)
  assert.equal(readFileSync(path.join(spec.directory, 'vmm.log'), 'utf8'), '', 'QEMU has nothing to complain of')
  process.kill(run.shim.pid, 'SIGKILL')
  await until(async () => !(await readRun(spec.directory)).shimAlive, 'the shim to end')
  clone.machine.close()
  const adopted = { ...clone, machine: await vmm.attach(spec.directory) }
  assert.equal(await output(adopted.agent, 'echo whole'), 'whole')
  assert.deepEqual(await end(adopted), [])
  assert.equal(await digestOf(state.memory), digest)
})

test('a save that fails leaves nothing, and the machine as it was', async (t) => {
  if (!isRoot) return t.skip('only root can mount a small file system')
  await using storage = await temporaryStorage()
  await using host = await stateHost(storage.folder)
  const { sandbox, machine } = host
  await fill(sandbox)
  const small = path.join(storage.folder, 'small')
  await mkdir(small)
  execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=16m', 'bandsox-test', small])
  try {
    const before = await count(sandbox)
    await sandbox.pause()
    await assert.rejects(machine.saveState(small, 'full'), (error) => isSystemError(error, 'ENOSPC'))
    assert.deepEqual(namesIn(small), [])
    const { directory } = await sandbox.info()
    assert.ok(namesIn(directory).every((name) => !name.startsWith('save')))
    assert.equal((await sandbox.info()).state.kind, 'paused')
    // There is room elsewhere.
    await machine.saveState(await host.stateFolder('state'), 'full')
    await sandbox.resume()
    await goesOn(sandbox, before)
  } finally {
    execFileSync('umount', [small])
  }
})

test('what cannot be loaded is explained in QEMU’s words, and leaves nothing', async () => {
  await using storage = await temporaryStorage()
  await using host = await stateHost(storage.folder)
  const { vmm, sandbox, machine } = host
  await sandbox.pause()
  const state = await machine.saveState(await host.stateFolder('state'), 'full')
  const spec = await host.beside(0)
  await sandbox.resume()
  const nothing = path.join(spec.directory, 'kernel')
  const broken = path.join(storage.folder, 'broken')
  await writeFile(broken, (await readFile(state.devices)).subarray(0, 30_000))
  const cases: [string, Parameters<typeof vmm.load>, RegExp][] = [
    ['no state', [spec, { ...state, devices: nothing }], /could not load the state: .*Not a migration stream/],
    ['half a state', [spec, { ...state, devices: broken }], /could not load the state: .*load of migration failed/],
    ['less memory', [{ ...spec, memoryMib: 128 }, state], /could not load the state: .*(size|Size|length)/i],
    ['more memory', [{ ...spec, memoryMib: 512 }, state], /could not load the state: .*backing store size/],
    ['another line', [{ ...spec, serialLine: 'uart' }, state], /could not load the state: /],
  ]
  for (const [name, [to, from], message] of cases) {
    await assert.rejects(vmm.load(to, from), hasCode('vmm-control', message), name)
    assert.ok(!namesIn(spec.directory).includes('loaded'), name)
    assert.equal((await readRun(spec.directory)).vmmAlive, false, name)
  }
  for (const options of [{ clockRealtime: true }, { trackDirtyPages: true }, { networkOverrides: { eth0: 'tap0' } }])
    await assert.rejects(vmm.load(spec, state, options), hasCode('host-unsupported'))
  await assert.rejects(vmm.mergeState(state, [state], storage.folder), hasCode('host-unsupported'))
  const reason = new Error('enough')
  await assert.rejects(vmm.load(spec, state, { signal: AbortSignal.abort(reason) }), (error) => error === reason)
  // The directory is good for another start.
  const clone = await loaded(vmm, spec, state)
  await clone.agent.waitUntilReady({ timeoutMs: READY_MS })
  assert.equal(await output(clone.agent, 'echo whole'), 'whole')
  assert.deepEqual(await end(clone), [])
})

test('a machine whose memory is shared with the vsock daemon cannot be saved, says why, and goes on', async (t) => {
  await using storage = await temporaryStorage()
  await using host = await stateHost(storage.folder, { vsock: 'auto' })
  const { sandbox, machine } = host
  const { vsock, directory } = await sandbox.info()
  if (vsock?.backend !== 'daemon') return t.skip(`the vsock of this host is ${vsock?.backend ?? 'none'}`)
  await sandbox.pause()
  await assert.rejects(
    machine.saveState(await host.stateFolder('state'), 'full'),
    hasCode('vmm-control', /non-migratable device .*vhost-user-vsock/),
  )
  assert.deepEqual(namesIn(path.join(storage.folder, 'state')), [])
  await sandbox.resume()
  assert.equal(await output(sandbox, 'echo whole'), 'whole')
  const status = await withQmp(path.join(directory, 'qmp.sock'), (qmp) => qmp.execute('query-status'))
  assert.equal((status as { status: string }).status, 'running')
})
