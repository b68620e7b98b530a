import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmodSync, existsSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { mkdir, open, readFile, stat, truncate, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import type { SnapshotRecord } from '../../store/snapshot-store.js'
import { hasCode } from '../../testing/errors.js'
import { nativeProgram } from '../../testing/native-program.js'
import { sampleManifest } from '../../testing/sample-manifest.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import { type TestHost, testHost } from '../../testing/test-host.js'
import { qemuDriver } from '../../vmm/qemu/qemu.js'
import { exportSnapshot, importSnapshot } from './archive.js'
import { recordFiles } from './files.js'
import { digestOf, type Manifest, writeManifest } from './manifest.js'
import { manifestOf } from './whole.js'

const MIB = 1024 * 1024
const names = ['memory', 'devices', 'root.squashfs', 'overlay.ext4']

async function hostFor(t: TestScope): Promise<TestHost> {
  const shim = nativeProgram('bandsox-shim')
  return await testHost(t, { shimPath: shim, vmm: qemuDriver({ shim, searchPath: [] }) })
}

/** Small, and of no machine: files with holes, as a snapshot's are. */
async function writeFiles(folder: string): Promise<void> {
  for (const name of ['memory', 'overlay.ext4']) {
    await using file = await open(path.join(folder, name), 'w')
    await file.truncate(64 * MIB)
    await file.write(`begin of ${name}`, 0)
    await file.write(`middle of ${name}`, MIB / 2)
  }
  await writeFile(path.join(folder, 'devices'), 'devices')
  await writeFile(path.join(folder, 'root.squashfs'), 'root')
}

async function smallSnapshot(host: TestHost): Promise<SnapshotRecord> {
  const unfinished = await host.store.snapshots.begin({
    ...{ name: 'small', purpose: 'snapshot', templateKey: undefined, sandbox: 'sbx_aaaaaaaaaa', base: undefined },
    metadata: {},
  })
  assert.ok(unfinished)
  await writeFiles(unfinished.folder)
  const { files, seals } = await recordFiles(host, unfinished.folder, names)
  const manifestDigest = await writeManifest(unfinished.folder, sampleManifest({ files }))
  return await unfinished.publish({ manifestDigest, seals })
}

/** An archive of somebody else's making, in which the digest of the manifest is right. */
async function forged(
  t: TestScope,
  host: TestHost,
  change: (manifest: Manifest, folder: string) => Manifest | Promise<Manifest>,
): Promise<string> {
  const folder = await temporaryFolder(t)
  await writeFiles(folder)
  const { files } = await recordFiles(host, folder, names)
  const manifest = JSON.stringify(await change(sampleManifest({ files }), folder))
  await writeFile(path.join(folder, 'manifest.json'), manifest)
  await writeFile(path.join(folder, 'manifest.sha256'), `${digestOf(manifest)}\n`)
  const archive = path.join(await temporaryFolder(t), 'forged.tar')
  execFileSync('tar', ['--create', '--sparse', `--file=${archive}`, `--directory=${folder}`, ...readdirSync(folder)])
  return archive
}

async function isRefused(host: TestHost, archive: string, error: (error: unknown) => boolean): Promise<void> {
  await assert.rejects(importSnapshot(host, archive, {}), error)
  assert.deepEqual(await host.store.snapshots.all(), [])
  const folder = path.join(host.store.root, 'snapshots')
  assert.deepEqual(existsSync(folder) ? readdirSync(folder) : [], [])
}

describe('an archive', () => {
  it('holds all of a snapshot, holes as holes, and gives it back', async (t) => {
    const host = await hostFor(t)
    const record = await smallSnapshot(host)
    const file = path.join(await temporaryFolder(t), 'small.tar')
    const { bytes } = await exportSnapshot(host, record, file, {})
    assert.equal((await stat(file)).size, bytes)
    assert.ok(bytes < MIB / 2, `${bytes} bytes`)
    const imported = await importSnapshot(host, file, { name: 'again' })
    assert.notEqual(imported.id, record.id)
    assert.deepEqual([imported.name, imported.sandbox], ['again', record.sandbox])
    assert.deepEqual(await manifestOf(host, imported), await manifestOf(host, record))
    for (const name of names) {
      const [one, other] = [record, imported].map(({ id }) => path.join(host.store.snapshots.folderOf(id), name))
      assert.ok((await readFile(one ?? '')).equals(await readFile(other ?? '')), name)
    }
    const memory = await stat(path.join(host.store.snapshots.folderOf(imported.id), 'memory'))
    assert.ok(memory.blocks * 512 < MIB / 2, 'a hole was filled')
    assert.equal(memory.mode & 0o777, 0o444)
  })

  it('is not made over another file, nor of what is damaged', async (t) => {
    const host = await hostFor(t)
    const record = await smallSnapshot(host)
    const folder = await temporaryFolder(t)
    const file = path.join(folder, 'there')
    writeFileSync(file, 'precious')
    await assert.rejects(exportSnapshot(host, record, file, {}), hasCode('bad-request', /there already/))
    assert.equal(await readFile(file, 'utf8'), 'precious')
    chmodSync(path.join(host.store.snapshots.folderOf(record.id), 'devices'), 0o600)
    await writeFile(path.join(host.store.snapshots.folderOf(record.id), 'devices'), 'device5')
    await assert.rejects(
      exportSnapshot(host, record, path.join(folder, 'new'), {}),
      hasCode('snapshot-damaged', /^devices of snapshot/),
    )
    assert.deepEqual(readdirSync(folder), ['there'])
  })

  it('of somebody else’s making is taken when all is right, and refused for each thing that is not', async (t) => {
    const host = await hostFor(t)
    const good = await importSnapshot(host, await forged(t, host, (manifest) => manifest), {})
    await host.store.snapshots.remove(good.id)
    const [memory, ...others] = sampleManifest().files
    assert.ok(memory)
    const noArchive = (reason: RegExp) => hasCode('bad-request', reason)
    const cases: [string, Parameters<typeof forged>[2], (error: unknown) => boolean][] = [
      ['knows no memory', (m) => ({ ...m, files: m.files.slice(1) }), noArchive(/knows no memory/)],
      ['a diff', (m) => ({ ...m, kind: 'diff' }), noArchive(/changed since another/)],
      [
        'another shape',
        (m) => ({ ...m, shape: { ...m.shape, memoryMib: 128 } }),
        noArchive(/another size than its shape/),
      ],
      ['a layer that is not there', (m) => ({ ...m, layers: ['layer-1.qcow2'] }), noArchive(/knows no layer-1/)],
      [
        'other content',
        (m) => ({ ...m, files: [{ ...memory, digest: '1'.repeat(64) }, ...m.files.slice(1)] }),
        hasCode('snapshot-damaged', /^memory of the snapshot in .*forged\.tar has the digest/),
      ],
      [
        'a file too many',
        (m) => ({ ...m, files: [...m.files, { ...memory, name: 'more' }] }),
        noArchive(/a more too many/),
      ],
      [
        'a file less',
        (m, folder) => {
          rmSync(path.join(folder, 'devices'))
          return m
        },
        hasCode('snapshot-damaged', /^devices is missing in /),
      ],
      [
        'a link',
        (m, folder) => {
          symlinkSync('/etc/passwd', path.join(folder, 'link'))
          return m
        },
        noArchive(/more than the plain files/),
      ],
      [
        'a folder',
        async (m, folder) => {
          await mkdir(path.join(folder, 'folder'))
          return m
        },
        noArchive(/more than the plain files/),
      ],
      [
        'a disk layer that names a file of the host',
        async (m, folder) => {
          const layer = path.join(folder, 'layer-1.qcow2')
          await host.vmm.makeLayer(layer, 64 * MIB)
          const file = await open(layer, 'r+')
          await file.write('/etc/passwd', 512)
          const head = Buffer.alloc(12)
          head.writeBigUInt64BE(512n, 0)
          head.writeUInt32BE('/etc/passwd'.length, 8)
          await file.write(head, 0, 12, 8)
          await file.close()
          const { files } = await recordFiles(host, folder, [...names, 'layer-1.qcow2'])
          return { ...m, layers: ['layer-1.qcow2'], files }
        },
        hasCode('artifact-damaged', /names a file below it/),
      ],
    ]
    assert.equal(others.length, 3)
    for (const [what, change, error] of cases) {
      t.diagnostic(what)
      await isRefused(host, await forged(t, host, change), error)
    }
  })

  it('that is cut short anywhere is refused', async (t) => {
    const host = await hostFor(t)
    for (const share of [0.99, 0.7, 0.4, 0.1, 0]) {
      const archive = await forged(t, host, (manifest) => manifest)
      await truncate(archive, Math.floor((await stat(archive)).size * share))
      // Its end is padding, by which nothing is lost.
      if (share === 0.99) continue
      await isRefused(host, archive, (error) => {
        assert.match((error as { code: string }).code, /^(bad-request|snapshot-damaged)$/)
        return true
      })
    }
  })
})
