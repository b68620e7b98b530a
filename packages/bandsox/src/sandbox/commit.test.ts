/** What needs no machine of it; the rest is in e2e/commit.test.ts. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { SandboxState } from '@bandsox/sdk'
import { DEFAULT_LIMITS } from '../image/layer/limits.js'
import { hasCode } from '../testing/errors.js'
import { sampleRecord } from '../testing/sample-record.js'
import type { TestScope } from '../testing/temporary-folder.js'
import { testHost } from '../testing/test-host.js'
import { qemuDriver } from '../vmm/qemu/qemu.js'
import { findLayer } from './commit.js'
import { checkedChanges } from './commit-options.js'
import { type Manifest, writeManifest } from './snapshot/manifest.js'

const since = '2026-01-01T00:00:00.000Z'
const nothing = () => undefined
const told = { onActivity: nothing, onStoodStill: nothing, onWarning: nothing }
const pack = { file: '/nonexistent', ...told, signal: undefined }

const { image, env, labels, metadata, limits, vsock } = sampleRecord()
const manifest: Manifest = {
  ...{ format: 1, kind: 'full', createdAt: since, sandbox: { id: 'sbx_aaaaaaaaaa' }, image, port: 9000 },
  shape: { vcpu: 1, memoryMib: 256, diskMib: 64, env, labels, metadata, limits, vsock },
  machine: { vmm: 'qemu', version: '7.2', accelerator: 'tcg', vsock: null },
  ...{ rootFile: 'root.squashfs', layers: [], isFrozen: true, pauseMs: 1 },
  files: ['memory', 'overlay.ext4'].map((name) => {
    return { name, sizeBytes: 1, allocatedBytes: 1, digest: '0'.repeat(64) }
  }),
}

const hostFor = (t: TestScope) =>
  testHost(t, { shimPath: '/bin/false', vmm: qemuDriver({ shim: '/bin/false', searchPath: [] }) })

describe('the layer of a sandbox', () => {
  it('is there when the sandbox does not run, whichever way it ended', async (t) => {
    const host = await hostFor(t)
    const states: SandboxState[] = [
      { kind: 'stopped', since },
      { kind: 'failed', since, reason: 'it died' },
      { kind: 'hibernated', since },
    ]
    for (const [index, state] of states.entries()) {
      const claim = await host.store.insert(sampleRecord({ id: `sbx_${'abc'[index]}aaaaaaaaa`, state }))
      await claim.release()
      assert.equal((await findLayer(host, claim.record.id)).title, `sandbox ${claim.record.id}`)
      assert.equal((await host.store.read(claim.record.id))?.operation, undefined)
    }
  })

  it('is none of an imported sandbox, whose disk is all of its files', async (t) => {
    const host = await hostFor(t)
    const claim = await host.store.insert(sampleRecord({ importedFrom: 'old-id' }))
    await claim.release()
    await assert.rejects(findLayer(host, 'old-id'), hasCode('bad-request', /it was imported/))
    assert.equal((await host.store.read(claim.record.id))?.operation, undefined)
    // One that was restored of such a one is not imported, and has the same disk.
    const restored = await host.store.insert(sampleRecord({ id: 'sbx_baaaaaaaaa', hasOwnRoot: true }))
    await restored.release()
    await assert.rejects(findLayer(host, 'sbx_baaaaaaaaa'), hasCode('bad-request', /a whole root file system/))
  })

  it('is a snapshot’s where no sandbox has the name', async (t) => {
    const host = await hostFor(t)
    const claim = await host.store.insert(sampleRecord({ name: 'both' }))
    await claim.release()
    const ids = new Map<string, string>()
    for (const name of ['both', 'mine']) {
      const entry = { name, metadata: {}, purpose: 'snapshot' as const, templateKey: undefined, base: undefined }
      const unfinished = await host.store.snapshots.begin({ ...entry, sandbox: claim.record.id })
      assert.ok(unfinished)
      const manifestDigest = await writeManifest(unfinished.folder, manifest)
      ids.set(name, (await unfinished.publish({ manifestDigest, seals: {} })).id)
    }
    const mine = ids.get('mine') ?? ''
    assert.equal((await findLayer(host, 'mine')).title, `snapshot ${mine}`)
    assert.equal((await findLayer(host, mine)).title, `snapshot ${mine}`)
    assert.equal((await findLayer(host, mine.slice(4))).title, `snapshot ${mine}`)
    assert.equal((await findLayer(host, 'both')).title, `sandbox ${claim.record.id}`)
    assert.equal((await findLayer(host, ids.get('both') ?? '')).title, `snapshot ${ids.get('both')}`)
    await assert.rejects(findLayer(host, 'snp_nothing'), hasCode('not-found', /nor such a snapshot/))
    await assert.rejects(findLayer(host, 'nobody'), hasCode('not-found', /no sandbox "nobody", nor such a snapshot/))
    // Its disk is gone: which is seen before a machine is started for it.
    const layer = await findLayer(host, mine)
    await assert.rejects(
      layer.pack(DEFAULT_LIMITS, pack),
      hasCode('snapshot-damaged', /cannot commit snapshot snp_\w+: overlay.ext4 of snapshot snp_\w+ is missing/),
    )
    assert.deepEqual(await host.store.ids(), [claim.record.id])
  })

  it('is refused while somebody works on the sandbox, or when there is none', async (t) => {
    const host = await hostFor(t)
    await host.store.insert(sampleRecord())
    await assert.rejects(findLayer(host, 'sbx_aaaaaaaaaa'), hasCode('busy'))
    await assert.rejects(findLayer(host, 'nobody'), hasCode('not-found'))
  })

  it('is missing where the disk is', async (t) => {
    const host = await hostFor(t)
    const claim = await host.store.insert(sampleRecord())
    await claim.release()
    const layer = await findLayer(host, claim.record.id)
    await assert.rejects(layer.pack(DEFAULT_LIMITS, pack), hasCode('storage-unusable', /its disk is not there/))
    assert.deepEqual(await host.store.ids(), [claim.record.id])
  })
})

describe('what a commit is told', () => {
  it('is taken as it is, and nothing where nothing is said', () => {
    const { env, ...rest } = checkedChanges({})
    assert.deepEqual([env, new Set(Object.values(rest))], [{}, new Set([undefined])])
    assert.deepEqual(checkedChanges({ cmd: [], env: { A: '' }, workingDir: '/' }).cmd, [])
  })

  it('is refused where no image can say so', () => {
    for (const [options, message] of [
      [{ workingDir: 'app' }, /workingDir.*no absolute path/],
      [{ env: { 'A=B': '' } }, /env/],
      [{ message: 'a\0b' }, /message.*NUL/],
      [{ cmd: ['a', 'b\0'] }, /cmd.*NUL/],
      [{ entrypoint: ['x'.repeat(20_000)] }, /entrypoint.*20000 bytes/],
      [{ user: 'x'.repeat(20_000) }, /user/],
    ] as const)
      assert.throws(
        () => checkedChanges(options as Parameters<typeof checkedChanges>[0]),
        hasCode('bad-request', message),
      )
  })
})
