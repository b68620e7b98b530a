/** What a sandbox's record becomes when its processes have died. The processes are real ones; no VM is needed for their end. */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import type { SandboxState } from '@bandsox/sdk'
import { identify, type ProcessIdentity } from '../process/identity.js'
import { cidPool, portPool } from '../store/lease.js'
import { lockOperation } from '../store/operation-lock.js'
import type { SandboxRecord } from '../store/record.js'
import { SandboxStore } from '../store/sandbox-store.js'
import { hasCode } from '../testing/errors.js'
import { noImages } from '../testing/no-images.js'
import { sampleRecord } from '../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { qemuDriver } from '../vmm/qemu/qemu.js'
import type { Host } from './host.js'
import { LocalBandSox } from './local-bandsox.js'
import { settle, stateAfterExit } from './settle.js'

const since = '2026-01-01T00:00:00.000Z'
const DEAD: ProcessIdentity = { pid: 2 ** 22 + 1, startTime: 1 }

/** A host whose shim finds nothing to adopt, since in these cases all is dead. */
async function hostFor(t: TestScope): Promise<Host> {
  const root = await temporaryFolder(t)
  const store = new SandboxStore(path.join(root, 'storage'))
  await store.open()
  const shimPath = path.join(root, 'shim')
  await writeFile(
    shimPath,
    '#!/bin/sh\necho \'{"event":"failed","code":"vmm-gone","message":"nothing to take over"}\'; exit 1\n',
  )
  await chmod(shimPath, 0o755)
  return {
    store,
    images: noImages(),
    shimPath,
    vmm: qemuDriver({ shim: shimPath, searchPath: [] }),
    debug: () => undefined,
    warn: () => undefined,
  }
}

async function sandboxIn(host: Host, state: SandboxState, over: Partial<SandboxRecord> = {}): Promise<SandboxRecord> {
  const id = over.id ?? 'sbx_aaaaaaaaaa'
  const record = sampleRecord({
    id,
    state,
    cid: 'cid' in over ? null : await host.store.leases.take(cidPool, id),
    port: 'port' in over ? null : await host.store.leases.take(portPool, id),
    ...over,
  })
  await (await host.store.makeDirectory(id))()
  await host.store.write(record)
  return record
}

async function writeRun(host: Host, id: string, shim: ProcessIdentity, vmm: ProcessIdentity): Promise<void> {
  await writeFile(path.join(host.store.directoryOf(id), 'run.json'), JSON.stringify({ shim, vmm, startedAt: since }))
}

async function writeExit(host: Host, id: string, exit: object): Promise<void> {
  await writeFile(path.join(host.store.directoryOf(id), 'exit.json'), JSON.stringify({ at: since, ...exit }))
}

async function heldBy(host: Host): Promise<number> {
  return (await host.store.leases.list(cidPool)).length + (await host.store.leases.list(portPool)).length
}

async function selfIdentity(): Promise<ProcessIdentity> {
  const self = await identify(process.pid)
  assert.ok(self !== undefined)
  return self
}

describe('settling', () => {
  it('says stopped of a guest that powered itself off, failed of any other end, and gives back what it held', async (t) => {
    const cases: [object, SandboxState['kind'], RegExp][] = [
      [{ code: 0 }, 'stopped', /^$/],
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
    assert.equal(await heldBy(host), 2)
  })

  it('does not touch what another process works on', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'creating', since })
    const unlock = await lockOperation(host.store.directoryOf(record.id), 'create')
    assert.equal(await settle(host, record), record)
    await unlock()
    assert.deepEqual(await host.store.read(record.id), record)
  })

  it('removes the remains of a creation that died', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'creating', since })
    const lock = { operation: 'create', ...DEAD }
    await writeFile(path.join(host.store.directoryOf(record.id), 'operation.lock'), JSON.stringify(lock))
    assert.equal(await settle(host, record), undefined)
    assert.deepEqual([await host.store.ids(), await heldBy(host)], [[], 0])
  })

  it('does not take a creation for dead that has succeeded since it looked', async (t) => {
    const host = await hostFor(t)
    const seen = await sandboxIn(host, { kind: 'creating', since })
    const self = await selfIdentity()
    const created = { ...seen, state: { kind: 'running', since } as const }
    await writeRun(host, seen.id, self, self)
    await host.store.write(created) // and its lock is released: what was read before is no longer true
    assert.deepEqual(await settle(host, seen), created)
    assert.deepEqual([await host.store.ids(), await heldBy(host)], [[seen.id], 2])
  })

  it('does not rename an end that another process has written down', async (t) => {
    const host = await hostFor(t)
    const seen = await sandboxIn(host, { kind: 'running', since })
    await writeRun(host, seen.id, DEAD, DEAD)
    await writeExit(host, seen.id, { signal: 'SIGKILL' })
    const stopped = { ...seen, cid: null, port: null, state: { kind: 'stopped', since } as const }
    await host.store.write(stopped)
    assert.deepEqual(await settle(host, seen), stopped)
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
      debug: () => undefined,
      warn: () => undefined,
    })

  it('sets right what dead processes left, and gives back numbers without a sandbox', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'running', since })
    await writeRun(host, record.id, DEAD, DEAD)
    await host.store.leases.take(cidPool, 'sbx_gonegonego')
    const bandsox = await open(host)
    const [info] = await bandsox.list()
    assert.deepEqual([info?.id, info?.state.kind, info?.vsock, info?.vmmPid], [record.id, 'failed', null, null])
    assert.equal(await heldBy(host), 0)
  })

  it('refuses what a stopped sandbox cannot do, deletes it, and then knows it no more', async (t) => {
    const host = await hostFor(t)
    const record = await sandboxIn(host, { kind: 'stopped', since }, { cid: null, port: null, name: 'web' })
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
    assert.deepEqual([await host.store.ids(), await heldBy(host)], [[], 0])
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
      debug: () => undefined,
      warn: () => undefined,
    })
    await (await bandsox.get(record.id)).delete({ force: true })
    assert.equal(bystander.exitCode ?? bystander.signalCode, null)
    assert.ok((await identify(identity.pid)) !== undefined)
  })
})
