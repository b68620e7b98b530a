/** What a sandbox's record becomes when its processes have died. The processes are real ones; no VM is needed for their end. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, readdir, rename, rm, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import type { SandboxState } from '@bandsox/sdk'
import { identify, identifySelf, type ProcessIdentity } from '../process/identity.js'
import { Database } from '../store/database.js'
import type { SandboxRecord } from '../store/record.js'
import { hasCode } from '../testing/errors.js'
import { sampleRecord } from '../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { type TestHost, testHost } from '../testing/test-host.js'
import { qemuDriver } from '../vmm/qemu/qemu.js'
import type { Host } from './host.js'
import { LocalBandSox } from './local-bandsox.js'
import { settle, stateAfterExit } from './settle.js'

const since = '2026-01-01T00:00:00.000Z'
const DEAD: ProcessIdentity = { pid: 2 ** 22 + 1, startTime: 1 }

/** A host whose shim finds nothing to adopt, since in these cases all is dead. */
async function hostFor(t: TestScope): Promise<TestHost> {
  const shimPath = path.join(await temporaryFolder(t), 'shim')
  await writeFile(
    shimPath,
    '#!/bin/sh\necho \'{"event":"failed","code":"vmm-gone","message":"nothing to take over"}\'; exit 1\n',
  )
  await chmod(shimPath, 0o755)
  return await testHost(t, { shimPath, vmm: qemuDriver({ shim: shimPath, searchPath: [] }) })
}

/** Comes to its state by the ways that lead there; `left`: the operation that its process, now dead, was at. */
async function sandboxIn(
  host: Host,
  state: SandboxState,
  { left, ...over }: Partial<SandboxRecord> & { left?: string } = {},
): Promise<SandboxRecord> {
  const id = over.id ?? 'sbx_aaaaaaaaaa'
  const claim = await host.store.insert(sampleRecord({ ...over, id, state: { kind: 'creating', since } }))
  await host.store.makeDirectory(id)
  if (state.kind !== 'stopped') await host.store.takeNumbers(id)
  if (state.kind !== 'creating') await host.store.transition(id, { state })
  await claim.release().catch(() => undefined) // the tables refuse what only a dead process leaves
  if (left !== undefined) await leaveOperation(host, id, left)
  const record = await host.store.read(id)
  assert.ok(record !== undefined)
  return record
}

/** As a process leaves it that is killed in the middle. */
async function leaveOperation(host: Host, id: string, name: string): Promise<void> {
  const holder = JSON.stringify({ ...DEAD, bootId: 'b', pidNamespace: 1 })
  await change(
    host,
    `UPDATE sandboxes SET operation = $name, operation_since = $since, operation_token = 'left', holder = $holder
     WHERE id = $id`,
    { id, name, since, holder },
  )
}

/** What another process has written. */
async function change(host: Host, sql: string, values: Record<string, string> = {}): Promise<void> {
  const database = await Database.open(path.join(host.store.root, 'bandsox.db'))
  await database.write((tables) => tables.change(sql, values))
  database.close()
}

async function writeRun(host: Host, id: string, shim: ProcessIdentity, vmm: ProcessIdentity): Promise<void> {
  await writeFile(path.join(host.store.directoryOf(id), 'run.json'), JSON.stringify({ shim, vmm, startedAt: since }))
}

async function writeExit(host: Host, id: string, exit: object): Promise<void> {
  await writeFile(path.join(host.store.directoryOf(id), 'exit.json'), JSON.stringify({ at: since, ...exit }))
}

async function heldBy(host: Host): Promise<number> {
  return (await host.store.list()).filter(({ cid, port }) => cid !== null || port !== null).length
}

const ids = async (host: Host) => (await host.store.list()).map(({ id }) => id)

async function selfIdentity(): Promise<ProcessIdentity> {
  const self = await identify(process.pid)
  assert.ok(self !== undefined)
  return self
}

describe('settling', () => {
  it('says stopped of a guest that powered itself off, failed of any other end, and gives back what it held', async (t) => {
    const cases: [object, SandboxState['kind'], RegExp][] = [
      [{ code: 0 }, 'stopped', /^$/],
      [{ code: 0, shutdown: 'guest-shutdown' }, 'stopped', /^$/],
      [{ code: 0, shutdown: 'guest-reset' }, 'failed', /the guest panicked, or rebooted itself/],
      [{ code: 1 }, 'failed', /exited with 1/],
      [{ signal: 'SIGSEGV' }, 'failed', /ended by SIGSEGV/],
      [{ unknown: true }, 'failed', /the VMM ended/],
    ]
    for (const [exit, kind, reason] of cases) {
      const host = await hostFor(t)
      const record = await sandboxIn(host, { kind: 'running', since })
      await writeRun(host, record.id, DEAD, DEAD)
      await writeExit(host, record.id, exit)
      const settled = await settle(host, record)
      assert.equal(settled?.state.kind, kind)
      assert.match(settled?.state.kind === 'failed' ? settled.state.reason : '', reason)
      assert.deepEqual([settled?.cid, settled?.port, await heldBy(host)], [null, null, 0])
      assert.deepEqual(await host.store.read(record.id), settled)
    }
  })

  it('says failed when VMM and shim died together, without a word', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'paused', since })
    await writeRun(host, record.id, DEAD, DEAD)
    const settled = await settle(host, record)
    assert.deepEqual([settled?.state.kind, await heldBy(host)], ['failed', 0])
  })

  it('does not touch what runs, or has been at rest', async (t) => {
    const host = await hostFor(t)
    const running = await sandboxIn(host, { kind: 'running', since })
    const self = await selfIdentity()
    await writeRun(host, running.id, self, self)
    assert.equal(await settle(host, running), running)
    for (const kind of ['stopped', 'hibernated'] as const) {
      const resting = sampleRecord({ id: 'sbx_bbbbbbbbbb', state: { kind, since } })
      assert.equal(await settle(host, resting), resting)
    }
    assert.equal(await heldBy(host), 1)
  })

  it('does not touch what another process works on', async (t) => {
    const host = await hostFor(t)
    const claim = await host.store.insert(sampleRecord({ state: { kind: 'creating', since } }))
    assert.equal(await settle(host, claim.record), claim.record)
    assert.deepEqual(await host.store.read(claim.record.id), claim.record)
  })

  it('removes the remains of a creation that died, also before it had a folder', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'creating', since }, { left: 'create' })
    assert.equal(await settle(host, record), undefined)
    await rm(host.store.directoryOf(record.id), { recursive: true, force: true })
    const again = await sandboxIn(host, { kind: 'creating', since }, { left: 'create' })
    await rm(host.store.directoryOf(record.id), { recursive: true })
    assert.equal(await settle(host, again), undefined)
    assert.deepEqual([await ids(host), await heldBy(host)], [[], 0])
  })

  it('goes on with a removal that died, at whatever point', async (t) => {
    const host = await hostFor(t)
    const whole = await sandboxIn(host, { kind: 'stopped', since }, { left: 'delete' })
    assert.equal(await settle(host, whole), undefined)
    const half = await sandboxIn(host, { kind: 'stopped', since }, { left: 'delete' })
    const directory = host.store.directoryOf(half.id)
    await rename(directory, path.join(path.dirname(directory), `.removed-${half.id}`))
    assert.equal(await settle(host, half), undefined)
    assert.deepEqual([await ids(host), await readdir(path.dirname(directory))], [[], []])
  })

  it('keeps a stopped sandbox whose start died, and gives back what the start had taken', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'stopped', since }, { left: 'start' })
    await change(host, 'UPDATE sandboxes SET cid = 3, port = 9000')
    await writeFile(path.join(host.store.directoryOf(record.id), 'shim.json.0123abcd.tmp'), '')
    assert.equal(await heldBy(host), 1)
    const settled = await settle(host, record)
    assert.deepEqual([settled?.state.kind, settled?.operation, await heldBy(host)], ['stopped', undefined, 0])
    assert.deepEqual(await readdir(host.store.directoryOf(record.id)), [], 'also what a file was to be made from')
  })

  it('does not take a creation for dead that has succeeded since it looked', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'running', since })
    const self = await selfIdentity()
    await writeRun(host, record.id, self, self)
    const operation = { name: 'create', since, token: 'left', holder: { ...DEAD, bootId: 'b', pidNamespace: 1 } }
    const seen: SandboxRecord = { ...record, state: { kind: 'creating', since }, operation }
    assert.deepEqual(await settle(host, seen), record)
    assert.deepEqual([await ids(host), await heldBy(host)], [[record.id], 1])
  })

  it('does not rename an end that another process has written down', async (t) => {
    const host = await hostFor(t)
    const seen = await sandboxIn(host, { kind: 'running', since })
    await writeRun(host, seen.id, DEAD, DEAD)
    await writeExit(host, seen.id, { signal: 'SIGKILL' })
    const stopped = await host.store.transition(seen.id, { state: { kind: 'stopped', since }, releaseNumbers: true })
    assert.deepEqual(await settle(host, seen), stopped)
  })

  it('vsock_cleanup_removes_socket_path: after the end all of these are empty again, and the log says so', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'running', since })
    const machine = {
      ...{ vmm: 'qemu', version: '7', accelerator: 'tcg' as const },
      vsock: { backend: 'daemon' as const, socket: 'vsock.sock' },
    }
    await host.store.transition(record.id, { state: record.state, machine })
    const socket = path.join(host.store.directoryOf(record.id), 'vsock.sock')
    await writeFile(socket, '') // its shim died before it could remove it
    await writeRun(host, record.id, DEAD, DEAD)
    const settled = await settle(host, record)
    assert.deepEqual([settled?.cid, settled?.port], [null, null])
    const lines = [
      'Allocated CID: 3',
      'Allocated port: 9000',
      `Removed vsock socket: ${socket}`,
      'Released CID: 3',
      'Released port: 9000',
    ]
    assert.deepEqual(
      host.logged.filter((line) => lines.includes(line)),
      lines,
    )
    await assert.rejects(stat(socket), { code: 'ENOENT' })
  })

  it('says paused, and why, of a machine that its VMM has paused, and running when that is over', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'running', since })
    const self = await selfIdentity()
    await writeRun(host, record.id, self, self)
    const say = (status: string, at: string) =>
      writeFile(path.join(host.store.directoryOf(record.id), 'machine.json'), JSON.stringify({ status, since: at }))
    await say('io-error', '2025-01-01T00:00:00.000Z') // of an earlier stall
    assert.equal((await settle(host, record))?.state.kind, 'running')
    await say('io-error', '2026-01-02T00:00:00.000Z')
    const paused = await settle(host, record)
    assert.deepEqual(paused?.state, {
      kind: 'paused',
      since: '2026-01-02T00:00:00.000Z',
      reason: "the host's disk is full",
    })
    assert.equal((await host.store.events(0)).at(-1)?.reason, "the host's disk is full")
    assert.ok(paused !== undefined)
    await say('running', '2026-01-03T00:00:00.000Z')
    assert.deepEqual((await settle(host, paused))?.state, { kind: 'running', since: '2026-01-03T00:00:00.000Z' })
  })

  it('leaves alone what runs in another container, of which it cannot see whether it does', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'running', since })
    const run = { shim: DEAD, vmm: DEAD, startedAt: since, ...{ ...(await identifySelf()), pidNamespace: 1 } }
    await writeFile(path.join(host.store.directoryOf(record.id), 'run.json'), JSON.stringify(run))
    assert.equal((await settle(host, record))?.state.kind, 'running')
    await writeFile(
      path.join(host.store.directoryOf(record.id), 'run.json'),
      JSON.stringify({ ...run, bootId: 'before' }),
    )
    assert.equal((await settle(host, record))?.state.kind, 'failed', 'but what was of another boot is dead')
  })

  it('is not kept from it by files that a loss of power has left empty', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'running', since })
    for (const name of ['run.json', 'exit.json', 'machine.json'])
      await writeFile(path.join(host.store.directoryOf(record.id), name), '')
    assert.equal((await settle(host, record))?.state.kind, 'failed')
  })

  it('knows a state for an end that nobody saw', () => {
    const state = stateAfterExit(undefined)
    assert.ok(state.kind === 'failed')
    assert.match(state.reason, /VMM and shim ended together/)
  })
})

describe('opening the storage', () => {
  const open = (host: Host) =>
    LocalBandSox.open({
      storage: host.store.root,
      shimPath: host.shimPath,
      searchPath: [],
      warn: () => undefined,
    })

  it('sets right what dead processes left', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'running', since })
    await writeRun(host, record.id, DEAD, DEAD)
    const bandsox = await open(host)
    const [info] = await bandsox.list()
    assert.deepEqual([info?.id, info?.state.kind, info?.vsock, info?.vmmPid], [record.id, 'failed', null, null])
    assert.equal(await heldBy(host), 0)
  })

  it('refuses what a stopped sandbox cannot do, deletes it, and then knows it no more', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'stopped', since }, { name: 'web' })
    const bandsox = await open(host)
    const sandbox = await bandsox.get('web')
    await assert.rejects(
      sandbox.exec('true').wait(),
      hasCode('wrong-state', /cannot exec sandbox sbx_aaaaaaaaaa: it is stopped/),
    )
    await assert.rejects(sandbox.files.read('/a'), hasCode('wrong-state', /cannot transfer/))
    await assert.rejects(sandbox.files.stat('a'), hasCode('bad-request', /absolute/))
    await assert.rejects(sandbox.pause(), hasCode('wrong-state'))
    await assert.rejects(sandbox.stop(), hasCode('wrong-state'))
    await sandbox.delete()
    await assert.rejects(sandbox.info(), hasCode('not-found', /it was removed/))
    await assert.rejects(sandbox.delete(), hasCode('not-found'))
    await assert.rejects(bandsox.get(record.id), hasCode('not-found'))
    assert.deepEqual([await ids(host), await heldBy(host)], [[], 0])
  })

  it('may be done by many at once, over the same remains', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'running', since })
    await writeRun(host, record.id, DEAD, DEAD)
    await Promise.all(Array.from({ length: 6 }, () => open(host)))
    const after = await open(host)
    assert.equal((await after.list())[0]?.state.kind, 'failed')
    assert.equal(await heldBy(host), 0)
  })
})

describe('deleting', () => {
  const openIn = (host: Host) =>
    LocalBandSox.open({ storage: host.store.root, shimPath: host.shimPath, searchPath: [], warn: () => undefined })

  it('that is refused was never begun: nobody goes on with it', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'running', since })
    const self = await selfIdentity()
    await writeRun(host, record.id, self, self)
    const sandbox = await (await openIn(host)).get(record.id)
    await assert.rejects(sandbox.delete(), hasCode('wrong-state', /cannot delete sandbox/))
    assert.equal((await host.store.read(record.id))?.operation, undefined)
    // A process that dies before it has asked has not begun one either.
    await leaveOperation(host, record.id, 'end')
    const settled = await settle(host, (await host.store.read(record.id)) ?? record)
    assert.deepEqual([settled?.state.kind, settled?.operation], ['running', undefined])
  })

  it('that fails half-way is finished by whoever comes next, also in this process', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'stopped', since })
    const bandsox = await openIn(host)
    const sandbox = await bandsox.get(record.id)
    const vms = path.dirname(host.store.directoryOf(record.id))
    // Its folder cannot be renamed onto a file that is in the way of it.
    await writeFile(path.join(vms, `.removed-${record.id}`), '')
    await assert.rejects(sandbox.delete(), { code: 'ENOTDIR' })
    assert.equal((await host.store.read(record.id))?.operation?.name, 'delete')
    await rm(path.join(vms, `.removed-${record.id}`), { force: true })
    assert.deepEqual(await bandsox.list(), [])
    assert.deepEqual(await readdir(vms), [])
  })
})

describe('deleting by force', () => {
  it('does not signal a process that has the pid of a VMM that is gone', async (t) => {
    const host = await hostFor(t)
    const bystander = spawn('sleep', ['60'], { stdio: 'ignore' })
    t.after(() => void bystander.kill('SIGKILL'))
    await once(bystander, 'spawn')
    const identity = await identify(bystander.pid ?? 0)
    assert.ok(identity !== undefined)
    const record = await sandboxIn(host, { kind: 'running', since })
    await writeRun(host, record.id, DEAD, { ...identity, startTime: identity.startTime - 1 })
    const bandsox = await LocalBandSox.open({
      storage: host.store.root,
      shimPath: host.shimPath,
      searchPath: [],
      warn: () => undefined,
    })
    await (await bandsox.get(record.id)).delete({ force: true })
    assert.equal(bystander.exitCode ?? bystander.signalCode, null)
    assert.ok((await identify(identity.pid)) !== undefined)
  })
})
