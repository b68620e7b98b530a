/** What an archive from anywhere may hold. No machine is needed: it is refused before anything is taken out of it. */
import assert from 'node:assert/strict'
import { mkdir, readdir, stat, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { BandSoxError } from '@bandsox/sdk'
import { runCommand } from '../../process/run.js'
import type { Seals } from '../../store/snapshot-store.js'
import { hasCode } from '../../testing/errors.js'
import { sampleRecord } from '../../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { testHost } from '../../testing/test-host.js'
import { qemuDriver } from '../../vmm/qemu/qemu.js'
import { exportSnapshot, importSnapshot } from './archive.js'
import { DIGEST_FILE, MANIFEST_FILE, type Manifest, writeManifest } from './manifest.js'

const MIB = 1024 * 1024
const SIZES: Record<string, number> = { memory: 64 * MIB, 'overlay.ext4': 64 * MIB }
const { image, env, labels, metadata, limits, vsock } = sampleRecord()

/** The shim, which sums up files, is none: what comes to that has not been refused. */
const hostFor = (t: TestScope) =>
  testHost(t, { shimPath: '/bin/false', vmm: qemuDriver({ shim: '/bin/false', searchPath: [] }) })

const fileOf = (name: string) => ({
  ...{ name, sizeBytes: SIZES[name] ?? 1, allocatedBytes: 0, digest: '0'.repeat(64) },
})

const manifestOf = (over: Partial<Manifest> = {}, names = ['memory', 'devices', 'overlay.ext4']): Manifest => {
  const { rootFile = 'root.squashfs', layers = [] } = over
  return {
    ...{ format: 1, kind: 'full', createdAt: '2026-01-01T00:00:00.000Z', sandbox: { id: 'sbx_aaaaaaaaaa' }, image },
    shape: { vcpu: 1, memoryMib: 64, diskMib: 64, env, labels, metadata, limits, vsock },
    machine: { vmm: 'qemu', version: '7.2', accelerator: 'tcg', vsock: null },
    ...{ port: 9000, rootFile, layers, isFrozen: true, pauseMs: 1 },
    files: [...names, rootFile, ...layers].map(fileOf),
    ...over,
  }
}

/** As `export` makes one, of a snapshot that says of itself what the manifest says. */
async function archiveOf(t: TestScope, manifest: Manifest): Promise<string> {
  const folder = path.join(await temporaryFolder(t), 'snapshot')
  await mkdir(folder)
  await writeManifest(folder, manifest)
  const names = [...new Set(manifest.files.map(({ name }) => name))]
  for (const name of names) {
    await writeFile(path.join(folder, name), '')
    await truncate(path.join(folder, name), SIZES[name] ?? 1)
  }
  const archive = `${folder}.tar`
  const options = ['--format=posix', '--sparse', '--sparse-version=1.0']
  await runCommand(['tar', '-c', ...options, '-f', archive, '-C', folder, DIGEST_FILE, MANIFEST_FILE, ...names])
  return archive
}

describe('an archive that is imported', () => {
  it('is taken where it has what a snapshot has', async (t) => {
    const host = await hostFor(t)
    for (const manifest of [
      manifestOf(),
      manifestOf({ rootFile: 'root.ext4', layers: ['layer-1.qcow2', 'layer-2.qcow2'] }),
    ])
      await assert.rejects(importSnapshot(host, await archiveOf(t, manifest), {}), hasCode('command-failed', /false/))
    assert.deepEqual(await host.store.snapshots.all(), [])
  })

  it('names no file that has another meaning in the directory of a VM, or in the folder of a snapshot', async (t) => {
    const host = await hostFor(t)
    for (const [over, names, message] of [
      [{ rootFile: 'run.json' }, undefined, /its root disk is called run\.json/],
      [{ rootFile: 'kernel' }, undefined, /its root disk is called kernel/],
      [{ layers: ['run.json'] }, undefined, /layers that no sandbox has/],
      [{ layers: ['layer-2.qcow2', 'layer-1.qcow2'] }, undefined, /layers that no sandbox has/],
      [{ layers: Array.from({ length: 9 }, (_, index) => `layer-${index + 1}.qcow2`) }, undefined, /layers that no/],
      [{}, ['memory', 'devices', 'overlay.ext4', 'overlay.ext4.pieces.json'], /a overlay\.ext4\.pieces\.json too many/],
      [{}, ['memory', 'devices', 'overlay.ext4', 'memory'], /a memory too many/],
      [{}, ['memory', 'overlay.ext4'], /knows no devices/],
    ] as const)
      await assert.rejects(
        importSnapshot(host, await archiveOf(t, manifestOf(over as Partial<Manifest>, names && [...names])), {}),
        hasCode('bad-request', message),
      )
    assert.deepEqual(await host.store.snapshots.all(), [])
  })

  it('makes no sandbox that create would refuse, nor anything that a terminal obeys', async (t) => {
    const host = await hostFor(t)
    const { shape, machine } = manifestOf()
    for (const [over, message] of [
      [{ shape: { ...shape, vcpu: 4_000 } }, /vcpu: 4000/],
      [{ shape: { ...shape, env: { 'A=B': '' } } }, /env/],
      [{ shape: { ...shape, labels: { a: '\u001b]0;x\u0007' } } }, /label a/],
      [{ shape: { ...shape, labels: { '-': '' } } }, /label/],
      [{ shape: { ...shape, metadata: { a: 'x'.repeat(100_000) } } }, /metadata/],
      [{ shape: { ...shape, limits: { ...limits, cpus: 1e-9 } } }, /limits\.cpus/],
      [{ sandbox: { id: 'sbx_aaaaaaaaaa', name: '\u001b[2J' } }, /name/],
      [{ sandbox: { id: '../../etc' } }, /of no sandbox/],
      [{ image: { ...image, reference: 'alpine\u001b[2J' } }, /not fit to be shown/],
      [{ image: { ...image, digest: '../../x' } }, /no digest/],
      [{ machine: { ...machine, version: '7.2\u202e' } }, /not fit to be shown/],
    ] satisfies [Partial<Manifest>, RegExp][])
      await assert.rejects(
        importSnapshot(host, await archiveOf(t, manifestOf(over)), {}),
        // What no schema of ours takes is damaged; what one takes, and no sandbox has, was never ours.
        (error) => {
          const isDamaged = error instanceof BandSoxError && error.code === 'snapshot-damaged'
          return isDamaged ? /manifest\.json/.test(error.message) : hasCode('bad-request', message)(error)
        },
      )
  })
})

it('an exported snapshot is its owner’s alone, whatever the umask is: it holds memory', async (t) => {
  const host = await hostFor(t)
  const before = process.umask(0o022)
  t.after(() => process.umask(before))
  const entry = { name: undefined, metadata: {}, purpose: 'snapshot' as const, templateKey: undefined, base: undefined }
  const unfinished = await host.store.snapshots.begin({ ...entry, sandbox: 'sbx_aaaaaaaaaa' })
  assert.ok(unfinished)
  const manifest = manifestOf()
  const seals: Seals = {}
  for (const { name, sizeBytes } of manifest.files) {
    const file = path.join(unfinished.folder, name)
    await writeFile(file, '')
    await truncate(file, sizeBytes)
    const { ino, mtimeNs } = await stat(file, { bigint: true })
    seals[name] = { inode: String(ino), sizeBytes, modifiedNs: String(mtimeNs) }
  }
  const manifestDigest = await writeManifest(unfinished.folder, manifest)
  const record = await unfinished.publish({ manifestDigest, seals })
  const folder = await temporaryFolder(t)
  await exportSnapshot(host, record, path.join(folder, 'it.tar'), {})
  assert.equal((await stat(path.join(folder, 'it.tar'))).mode & 0o777, 0o600)
  assert.deepEqual(await readdir(folder), ['it.tar'])
})
