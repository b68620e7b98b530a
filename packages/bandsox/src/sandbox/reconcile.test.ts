/** What is found and set right; the processes are real ones. */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdir, readdir, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { identify, identifySelf } from '../process/identity.js'
import { sampleRecord } from '../testing/sample-record.js'
import type { TestScope } from '../testing/temporary-folder.js'
import { testHost } from '../testing/test-host.js'
import { qemuDriver } from '../vmm/qemu/qemu.js'
import type { Host } from './host.js'
import { findProblems, reconcile } from './reconcile.js'

const since = '2026-01-01T00:00:00.000Z'

const hostFor = (t: TestScope) =>
  testHost(t, { shimPath: '/bin/false', vmm: qemuDriver({ shim: '/bin/false', searchPath: [] }) })

/** Marked as the shim marks its own, unless the test says otherwise. */
async function processIn(t: TestScope, directory: string, env: NodeJS.ProcessEnv): Promise<ChildProcess> {
  const child = spawn('/bin/sleep', ['600'], { cwd: directory, env, stdio: 'ignore' })
  t.after(() => void child.kill('SIGKILL'))
  await once(child, 'spawn')
  return child
}

async function isRunning({ pid = 0 }: ChildProcess): Promise<boolean> {
  return (await identify(pid)) !== undefined
}

async function ended(child: ChildProcess): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) await once(child, 'exit')
}

const vmsOf = (host: Host) => path.join(host.store.root, 'vms')

describe('a reconcile', () => {
  it('finds nothing where all is in order', async (t) => {
    const host = await hostFor(t)
    const { record, release } = await host.store.insert(sampleRecord())
    await host.store.makeDirectory(record.id)
    await release()
    assert.deepEqual(await findProblems(host), [])
  })

  it('removes folders that no sandbox has, and ends what a shim has put on record there', async (t) => {
    const host = await hostFor(t)
    const stranger = path.join(vmsOf(host), 'sbx_bbbbbbbbbb')
    await mkdir(stranger)
    const vmm = await processIn(t, stranger, {})
    const identity = await identify(vmm.pid ?? 0)
    await writeFile(
      path.join(stranger, 'run.json'),
      JSON.stringify({ shim: identity, vmm: identity, startedAt: since }),
    )
    await mkdir(path.join(vmsOf(host), '.removed-sbx_cccccccccc'))
    const told: string[] = []
    await reconcile(host, {
      onAction: ({ subject, problem, action }) => told.push(`${subject}: ${problem}: ${action}`),
    })
    await ended(vmm)
    assert.deepEqual(await readdir(vmsOf(host)), [])
    assert.match(
      told.sort().join('\n'),
      /sbx_bbbbbbbbbb: sandbox sbx_bbbbbbbbbb is not known: end what runs in it, and remove it/,
    )
  })

  it('does not signal a process that only has the pid of one on record', async (t) => {
    const host = await hostFor(t)
    const stranger = path.join(vmsOf(host), 'sbx_bbbbbbbbbb')
    await mkdir(stranger)
    const bystander = await processIn(t, '/', {})
    const identity = await identify(bystander.pid ?? 0)
    assert.ok(identity !== undefined)
    const other = { ...identity, startTime: identity.startTime - 1 }
    await writeFile(path.join(stranger, 'run.json'), JSON.stringify({ shim: other, vmm: other, startedAt: since }))
    await reconcile(host)
    assert.ok(await isRunning(bystander))
    assert.deepEqual(await readdir(vmsOf(host)), [])
  })

  it('does not signal one that has pid and start time of one of another boot, or of another container', async (t) => {
    const host = await hostFor(t)
    const bystander = await processIn(t, '/', {})
    const identity = await identify(bystander.pid ?? 0)
    const self = await identifySelf()
    for (const elsewhere of [{ bootId: 'before' }, { pidNamespace: 1 }]) {
      const stranger = path.join(vmsOf(host), 'sbx_bbbbbbbbbb')
      await mkdir(stranger)
      const { bootId, pidNamespace } = { ...self, ...elsewhere }
      const run = { shim: identity, vmm: identity, startedAt: since, bootId, pidNamespace }
      await writeFile(path.join(stranger, 'run.json'), JSON.stringify(run))
      await reconcile(host)
      assert.ok(await isRunning(bystander), JSON.stringify(elsewhere))
      assert.deepEqual(await readdir(vmsOf(host)), [])
    }
  })

  it('ends marked processes of a VM that is not known, and nobody else who happens to be there', async (t) => {
    const host = await hostFor(t)
    const folder = path.join(vmsOf(host), 'sbx_bbbbbbbbbb')
    await mkdir(folder)
    const marked = await processIn(t, folder, { BANDSOX_SANDBOX: 'sbx_bbbbbbbbbb' })
    const shell = await processIn(t, folder, {})
    await rm(folder, { recursive: true }) // by hand
    const [finding, ...more] = await findProblems(host)
    assert.equal(more.length, 0)
    assert.match(finding?.subject ?? '', new RegExp(`^process ${marked.pid} \\(sleep\\)$`))
    assert.match(finding?.problem ?? '', /sandbox sbx_bbbbbbbbbb, which is not known/)
    await reconcile(host)
    await ended(marked)
    assert.ok(await isRunning(shell))
    assert.deepEqual(await findProblems(host), [])
  })

  it('leaves a creation alone that is going on', async (t) => {
    const host = await hostFor(t)
    const { record } = await host.store.insert(sampleRecord({ state: { kind: 'creating', since } }))
    await host.store.makeDirectory(record.id)
    const vmm = await processIn(t, host.store.directoryOf(record.id), { BANDSOX_SANDBOX: record.id })
    assert.deepEqual(await reconcile(host), [])
    assert.ok(await isRunning(vmm))
  })

  it('removes a disk that nobody knows only when it is asked to', async (t) => {
    const host = await hostFor(t)
    const stranger = path.join(vmsOf(host), 'sbx_bbbbbbbbbb')
    await mkdir(stranger)
    await writeFile(path.join(stranger, 'overlay.ext4'), 'precious')
    await writeFile(path.join(vmsOf(host), 'notes.txt'), 'of somebody')
    await reconcile(host)
    assert.deepEqual(await readdir(vmsOf(host)), ['notes.txt', 'sbx_bbbbbbbbbb'])
    assert.ok(
      host.logged.some((line) => /sbx_bbbbbbbbbb is not known; it is left as it is: see bandsox cleanup/.test(line)),
    )
    await reconcile(host, { isAsked: true })
    assert.deepEqual(await readdir(vmsOf(host)), [])
  })

  it('removes what waits in a pool that is no more, and nothing else that waits', async (t) => {
    const host = await hostFor(t)
    const { id: pool } = await host.store.pools.set({
      ...{ image: 'alpine', size: 1, maxAgeMs: 60_000 },
      options: { vcpu: 1, memoryMib: 256, diskMib: 64, vsock: 'auto' },
    })
    for (const [id, of] of Object.entries({ sbx_aaaaaaaaaa: pool, sbx_bbbbbbbbbb: 'pool_aaaaaaaaaa' })) {
      const { record, release } = await host.store.insert(sampleRecord({ id, pool: of }))
      await host.store.makeDirectory(record.id)
      await release()
    }
    const [finding, ...more] = await findProblems(host)
    assert.deepEqual(
      [finding?.subject, finding?.problem, more],
      ['sandbox sbx_bbbbbbbbbb', 'it waits in a pool that is no more', []],
    )
    await reconcile(host)
    assert.deepEqual(
      (await host.store.list()).map(({ id }) => id),
      ['sbx_aaaaaaaaaa'],
    )
    assert.deepEqual(await readdir(vmsOf(host)), ['sbx_aaaaaaaaaa'])
  })

  it('goes on with the others when one resists', async (t) => {
    const host = await hostFor(t)
    for (const id of ['sbx_aaaaaaaaaa', 'sbx_bbbbbbbbbb']) {
      const { record, abandon } = await host.store.insert(sampleRecord({ id, state: { kind: 'creating', since } }))
      await host.store.makeDirectory(record.id)
      await abandon()
    }
    await writeFile(path.join(vmsOf(host), '.removed-sbx_aaaaaaaaaa'), '') // in the way of the removal
    await reconcile(host)
    assert.deepEqual(
      (await host.store.list()).map(({ id }) => id),
      ['sbx_aaaaaaaaaa'],
    )
    assert.ok(host.logged.some((line) => /sandbox sbx_aaaaaaaaaa: .*; cannot remove it: /.test(line)))
  })
})
