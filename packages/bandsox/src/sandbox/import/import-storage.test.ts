/** Whole imports into a storage of ours; no VM is started. */
import assert from 'node:assert/strict'
import { utimesSync } from 'node:fs'
import { chmod, readFile, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import {
  DEAD_ID,
  type EarlierStorageParts,
  earlierRecord,
  earlierStorage,
  OTHER_ID,
  RUNNING_ID,
  runningFirecracker,
  treeDigest,
} from '../../testing/earlier-storage.js'
import { hasCode } from '../../testing/errors.js'
import { runModule } from '../../testing/module-process.js'
import type { TestScope } from '../../testing/temporary-folder.js'
import { type TestHost, testHost } from '../../testing/test-host.js'
import { qemuDriver } from '../../vmm/qemu/qemu.js'
import { reconcile } from '../reconcile.js'
import { type ImportReport, importStorage } from './import-storage.js'

const hostFor = (t: TestScope): Promise<TestHost> =>
  testHost(t, { shimPath: '/nonexistent', vmm: qemuDriver({ shim: '/nonexistent', searchPath: [] }) })

const outcomes = ({ vms }: ImportReport) =>
  Object.fromEntries(vms.map(({ earlierId, file, outcome }) => [earlierId ?? file, outcome]))

const vsock = (cid: number, port: number) => ({ vsock_config: { enabled: true, cid, port } })

/** The vsock report's: one dead, one running, and a second dead one that has the running one's numbers. */
const reported: EarlierStorageParts = {
  records: [
    earlierRecord(DEAD_ID, {
      ...vsock(4, 9001),
      name: 'test-vsock-vm',
      metadata: { owner: 'me' },
      env_vars: { A: 'b' },
    }),
    earlierRecord(RUNNING_ID, vsock(5, 9002)),
    earlierRecord(OTHER_ID, vsock(5, 9002)),
  ],
  cids: { free_cids: [], next_cid: 4 },
  ports: { next_port: 9002, used_ports: [9000, 9001, 9002] },
}

describe('an import', () => {
  it('makes stopped sandboxes of what is dead, and leaves alone what runs, with its numbers', async (t) => {
    const host = await hostFor(t)
    const folder = await earlierStorage(t, reported)
    const { pid, end } = await runningFirecracker(t, { args: ['--api-sock', `${folder}/sockets/${RUNNING_ID}.sock`] })
    const before = await treeDigest(folder)
    const report = await importStorage(host, folder)
    assert.equal(await treeDigest(folder), before)
    assert.deepEqual(outcomes(report), { [DEAD_ID]: 'imported', [RUNNING_ID]: 'running', [OTHER_ID]: 'imported' })
    assert.equal(report.vms.find(({ outcome }) => outcome === 'running')?.pid, pid)
    assert.deepEqual(report.conflicts, [
      { number: 'CID', value: 5, heldBy: [RUNNING_ID], dead: [OTHER_ID] },
      { number: 'port', value: 9002, heldBy: [RUNNING_ID], dead: [OTHER_ID] },
    ])
    assert.deepEqual(report.numbers, {
      cids: { free_cids: [], next_cid: 6 },
      ports: { next_port: 9003, used_ports: [] },
    })

    const record = await host.store.find(DEAD_ID)
    assert.equal(record.id, report.vms.find(({ earlierId }) => earlierId === DEAD_ID)?.sandbox)
    const { name, state, importedFrom, env, metadata, labels, vcpu, memoryMib, diskMib, createdAt, operation } = record
    assert.deepEqual(
      { name, state: state.kind, importedFrom, env, metadata, labels, vcpu, memoryMib, diskMib, createdAt, operation },
      {
        ...{
          name: 'test-vsock-vm',
          state: 'stopped',
          importedFrom: DEAD_ID,
          env: { A: 'b' },
          metadata: { owner: 'me' },
        },
        ...{ labels: {}, vcpu: 1, memoryMib: 128, diskMib: 64, createdAt: '2026-01-09T12:00:00.500Z' },
        operation: undefined,
      },
    )
    assert.equal(record.image.reference, 'alpine:latest')
    const root = path.join(host.store.directoryOf(record.id), 'root.ext4')
    assert.deepEqual(await readFile(root), await readFile(path.join(folder, 'images', `${DEAD_ID}.ext4`)))
    assert.equal((await stat(root)).mode & 0o777, 0o600)
    assert.ok((await stat(root)).blocks * 512 < 64 * 1024, 'its holes were filled')
    const overlay = await stat(path.join(host.store.directoryOf(record.id), 'overlay.ext4'))
    assert.equal(overlay.size, 64 * 1024 * 1024)

    // The numbers of what runs there are not given here.
    assert.deepEqual(await host.store.takeNumbers((await host.store.claim(record.id, 'start'))?.record.id ?? ''), {
      ...{ cid: 6, port: 9003 },
    })

    // Once it is stopped there, a second import brings it, and leaves the others alone.
    await end()
    const again = await importStorage(host, folder)
    assert.deepEqual(outcomes(again), { [DEAD_ID]: 'present', [RUNNING_ID]: 'imported', [OTHER_ID]: 'present' })
    assert.equal(again.vms.find(({ earlierId }) => earlierId === DEAD_ID)?.sandbox, record.id)
    const third = await importStorage(host, folder)
    assert.deepEqual(new Set(Object.values(outcomes(third))), new Set(['present']))
    assert.deepEqual(third.numbers, again.numbers)
    assert.equal((await host.store.list()).length, 3)
    assert.equal(await treeDigest(folder), before)
    assert.deepEqual(await reconcile(host), [])
  })

  it('that is a dry run tells the same and changes nothing', async (t) => {
    const host = await hostFor(t)
    const folder = await earlierStorage(t, reported)
    const before = [await treeDigest(folder), await host.store.numbers()]
    const report = await importStorage(host, folder, { dryRun: true })
    assert.deepEqual(new Set(Object.values(outcomes(report))), new Set(['importable']))
    assert.ok(report.neededBytes > 0 && report.freeBytes > report.neededBytes)
    assert.deepEqual(await host.store.list(), [])
    assert.deepEqual([await treeDigest(folder), await host.store.numbers()], before)
  })

  it('takes the numbers of the allocators, and counts on from them', async (t) => {
    const host = await hostFor(t)
    const cids = { free_cids: [3, 5], next_cid: 12 }
    const folder = await earlierStorage(t, { cids, ports: { next_port: 9033, used_ports: [] } })
    const { numbers } = await importStorage(host, folder)
    assert.deepEqual(numbers, { cids: { free_cids: [], next_cid: 12 }, ports: { next_port: 9033, used_ports: [] } })
  })

  it('brings what is whole when the rest is not, and says why', async (t) => {
    const host = await hostFor(t)
    const folder = await earlierStorage(t, {
      records: [earlierRecord(DEAD_ID), earlierRecord(OTHER_ID), earlierRecord(RUNNING_ID, { name: '<b>\u001b[2J' })],
      files: { 'broken.json': '{' },
      diskless: [OTHER_ID],
    })
    const report = await importStorage(host, folder)
    assert.deepEqual(outcomes(report), {
      ...{ 'broken.json': 'refused', [DEAD_ID]: 'imported', [OTHER_ID]: 'refused', [RUNNING_ID]: 'imported' },
    })
    assert.match(report.vms.find(({ earlierId }) => earlierId === OTHER_ID)?.reason ?? '', /disk was not found in/)
    // Brought later, it is imported like the others.
    await writeFile(
      path.join(folder, 'images', `${OTHER_ID}.ext4`),
      await readFile(path.join(folder, 'images', `${DEAD_ID}.ext4`)),
    )
    assert.equal(outcomes(await importStorage(host, folder))[OTHER_ID], 'imported')
  })

  it('undoes what it cannot finish, and goes on with the next', async (t) => {
    const host = await hostFor(t)
    const folder = await earlierStorage(t, { records: [earlierRecord(DEAD_ID), earlierRecord(OTHER_ID)] })
    const report = await importStorage(host, folder, {
      onCopy: ({ earlierId }) => {
        if (earlierId === OTHER_ID) host.store.makeDirectory = () => Promise.reject(new Error('no folder today'))
        else host.store.makeDirectory = Object.getPrototypeOf(host.store).makeDirectory
      },
    })
    assert.deepEqual(outcomes(report), { [OTHER_ID]: 'failed', [DEAD_ID]: 'imported' })
    assert.match(report.vms.find(({ outcome }) => outcome === 'failed')?.reason ?? '', /no folder today/)
    assert.equal((await host.store.list()).length, 1)
    assert.deepEqual(await host.store.strangers(), [])
    assert.equal(outcomes(await importStorage(host, folder))[OTHER_ID], 'imported')
  })

  it('notices a disk that is written to while it is copied', async (t) => {
    const host = await hostFor(t)
    const folder = await earlierStorage(t, { records: [earlierRecord(DEAD_ID)] })
    const disk = path.join(folder, 'images', `${DEAD_ID}.ext4`)
    const writing = setInterval(() => utimesSync(disk, Math.random() * 1e9, Math.random() * 1e9), 1)
    const report = await importStorage(host, folder)
    clearInterval(writing)
    assert.deepEqual(outcomes(report), { [DEAD_ID]: 'failed' })
    assert.match(report.vms[0]?.reason ?? '', /was changed while it was copied/)
    assert.deepEqual([await host.store.list(), await host.store.strangers()], [[], []])
  })

  it('that is given up leaves nothing of the one that it was at', async (t) => {
    const host = await hostFor(t)
    const folder = await earlierStorage(t, reported)
    const abort = new AbortController()
    const reason = new Error('enough')
    const onCopy = ({ index }: { index: number }) => index === 2 && abort.abort(reason)
    await assert.rejects(importStorage(host, folder, { signal: abort.signal, onCopy }), reason)
    assert.deepEqual(
      (await host.store.list()).map(({ state }) => state.kind),
      ['stopped'],
    )
    assert.deepEqual(await host.store.strangers(), [])
  })

  it('that is killed leaves a sandbox that the next command removes', async (t) => {
    const host = await hostFor(t)
    const folder = await earlierStorage(t, { records: [earlierRecord(DEAD_ID)] })
    // A cp that tells that it has begun, and does not end.
    const bin = await earlierStorage(t)
    await writeFile(
      path.join(bin, 'cp'),
      '#!/bin/sh\necho copying >&2; touch "$4"; touch "$(dirname "$0")/begun"; exec sleep 30\n',
    )
    await chmod(path.join(bin, 'cp'), 0o755)
    const code = `
      process.env.PATH = args[2] + ':' + process.env.PATH
      const { LocalBandSox } = await import(url('../local-bandsox.js'))
      const bandsox = await LocalBandSox.open({ storage: args[0], shimPath: '/none', searchPath: [], warn: () => {} })
      const { access } = await import('node:fs/promises')
      const timer = setInterval(() => access(args[2] + '/begun').then(() => { clearInterval(timer); console.log('begun') }, () => {}), 20)
      await bandsox.importFrom(args[1])`
    const importing = runModule(t, import.meta.url, code, [host.store.root, folder, bin])
    await importing.printed('begun')
    const [row] = await host.store.list()
    assert.deepEqual([row?.state.kind, row?.operation?.name, row?.importedFrom], ['creating', 'import', DEAD_ID])
    // Meanwhile another one leaves it alone.
    assert.deepEqual(outcomes(await importStorage(host, folder)), { [DEAD_ID]: 'present' })
    importing.child.kill('SIGKILL')
    await importing.done.catch(() => undefined)
    await reconcile(host)
    assert.deepEqual([await host.store.list(), await host.store.strangers()], [[], []])
    assert.deepEqual(outcomes(await importStorage(host, folder)), { [DEAD_ID]: 'imported' })
  })

  it('by two processes at once enters each VM once', async (t) => {
    const host = await hostFor(t)
    const folder = await earlierStorage(t, { records: [earlierRecord(DEAD_ID), earlierRecord(OTHER_ID)] })
    const reports = await Promise.all([importStorage(host, folder), importStorage(host, folder)])
    const all = reports.flatMap(({ vms }) => vms.map(({ outcome }) => outcome)).sort()
    assert.deepEqual(all, ['imported', 'imported', 'present', 'present'])
    assert.equal((await host.store.list()).length, 2)
  })

  it('is refused where one folder lies in the other', async (t) => {
    const host = await hostFor(t)
    for (const folder of [host.store.root, path.dirname(host.store.root), path.join(host.store.root, 'vms')])
      await assert.rejects(importStorage(host, folder), hasCode('bad-request', /one lies in the other/))
  })
})
