/** What is told of a snapshot that somebody removes while it is restored, or that has lost a file. No machine is needed. */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { rm, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { it } from 'node:test'
import type { SnapshotRecord } from '../../store/snapshot-store.js'
import { hasCode } from '../../testing/errors.js'
import { sampleRecord } from '../../testing/sample-record.js'
import type { TestScope } from '../../testing/temporary-folder.js'
import { type TestHost, testHost } from '../../testing/test-host.js'
import { qemuDriver } from '../../vmm/qemu/qemu.js'
import { LocalSnapshots } from './local-snapshots.js'
import { type Manifest, writeManifest } from './manifest.js'
import { restoreSnapshot } from './restore.js'

const { image, env, labels, metadata, limits, vsock } = sampleRecord()
const fingerprint = { vmm: 'qemu' }

/** @param onLook Called when it is found out whether this host can load it. */
const hostFor = (t: TestScope, onLook: () => Promise<void>) => {
  const vmm = qemuDriver({ shim: '/bin/false', searchPath: [] })
  const looked = async () => {
    await onLook()
    return fingerprint
  }
  return testHost(t, { shimPath: '/bin/false', vmm: { ...vmm, fingerprint: looked } })
}

/** Of a sandbox whose root disk is its own, which a restore copies. */
async function snapshotOf(host: TestHost): Promise<SnapshotRecord> {
  // A template, whose files are not read where nobody has touched them: they have no digests that would be right.
  const entry = {
    name: undefined,
    metadata: {},
    purpose: 'template' as const,
    templateKey: randomUUID(),
    base: undefined,
  }
  const unfinished = await host.store.snapshots.begin({ ...entry, sandbox: 'sbx_aaaaaaaaaa' })
  assert.ok(unfinished)
  const names = ['memory', 'devices', 'overlay.ext4', 'root.ext4']
  const seals: SnapshotRecord['seals'] = {}
  for (const name of names) {
    await writeFile(path.join(unfinished.folder, name), 'x')
    const { ino, mtimeNs } = await stat(path.join(unfinished.folder, name), { bigint: true })
    seals[name] = { inode: String(ino), sizeBytes: 1, modifiedNs: String(mtimeNs) }
  }
  const manifest: Manifest = {
    ...{ format: 1, kind: 'full', createdAt: '2026-01-01T00:00:00.000Z', sandbox: { id: 'sbx_aaaaaaaaaa' }, image },
    shape: { vcpu: 1, memoryMib: 64, diskMib: 64, env, labels, metadata, limits, vsock },
    machine: { vmm: 'qemu', version: '7.2', accelerator: 'tcg', vsock: null, fingerprint },
    ...{ port: 9000, rootFile: 'root.ext4', layers: [], isFrozen: true, pauseMs: 1 },
    files: names.map((name) => ({ name, sizeBytes: 1, allocatedBytes: 512, digest: '0'.repeat(64) })),
  }
  return await unfinished.publish({ manifestDigest: await writeManifest(unfinished.folder, manifest), seals })
}

it('a snapshot that is removed while it is restored is not found, and nothing is left', async (t) => {
  let remove: () => Promise<void> = async () => undefined
  const host = await hostFor(t, () => remove())
  const snapshot = await snapshotOf(host)
  remove = () => host.store.snapshots.remove(snapshot.id)
  await assert.rejects(restoreSnapshot(host, snapshot, {}), hasCode('not-found', /it was removed meanwhile/))
  // Removed before: its folder is gone as well.
  await assert.rejects(restoreSnapshot(host, snapshot, {}), hasCode('not-found', /it was removed meanwhile/))
  assert.deepEqual(await host.store.ids(), [])
})

it('a snapshot that has lost a file keeps nobody from the others', async (t) => {
  const host = await hostFor(t, async () => undefined)
  const [damaged, whole] = [await snapshotOf(host), await snapshotOf(host)]
  await rm(path.join(host.store.snapshots.folderOf(damaged.id), 'root.ext4'))
  assert.deepEqual(
    (await new LocalSnapshots(host).list({ templates: true })).map(({ id }) => id),
    [whole.id],
  )
  assert.ok(host.logged.some((line) => line.includes(`${damaged.id}/root.ext4 is missing`)))
})
