import assert from 'node:assert/strict'
import { chmod, chown, cp, mkdir, readdir, rename, stat, symlink, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { identify } from '../process/identity.js'
import { hasCode } from '../testing/errors.js'
import { runModule } from '../testing/module-process.js'
import { sampleRecord } from '../testing/sample-record.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { SandboxStore } from './sandbox-store.js'
import { networkFileSystem, openStorageFolder } from './storage-folder.js'

const since = '2026-01-01T00:00:00.000Z'

describe('the storage folder', () => {
  it('is made with those above it, for its owner only, and accepted again', async (t) => {
    const folder = path.join(await temporaryFolder(t), 'a/b/storage')
    await openStorageFolder(folder)
    assert.equal((await stat(folder)).mode & 0o777, 0o700)
    await chmod(folder, 0o755)
    await openStorageFolder(folder)
    assert.equal((await stat(folder)).mode & 0o777, 0o700)
  })

  it('is not one that holds something else, which stays as it was', async (t) => {
    const folder = await temporaryFolder(t)
    await chmod(folder, 0o755)
    await writeFile(path.join(folder, 'thesis.tex'), 'x')
    await assert.rejects(openStorageFolder(folder), hasCode('storage-unusable', /not empty: it holds "thesis\.tex"/))
    assert.deepEqual([await readdir(folder), (await stat(folder)).mode & 0o777], [['thesis.tex'], 0o755])
  })

  it("is not the earlier project's, which can be imported", async (t) => {
    const folder = await temporaryFolder(t)
    await writeFile(path.join(folder, 'cid_allocator.json'), '{}')
    await assert.rejects(openStorageFolder(folder), (error) => {
      assert.ok(hasCode('storage-unusable', /a storage of the earlier BandSox, in Python/)(error))
      assert.match((error as { hint: string }).hint, /bandsox import /)
      return true
    })
  })

  it('is not a file, nor below one, nor inside another storage', async (t) => {
    const folder = await temporaryFolder(t)
    await writeFile(path.join(folder, 'file'), 'x')
    for (const name of ['file', 'file/below'])
      await assert.rejects(openStorageFolder(path.join(folder, name)), hasCode('storage-unusable', /is not a folder/))
    const storage = path.join(folder, 'storage')
    ;(await SandboxStore.open(storage)).close()
    await assert.rejects(
      openStorageFolder(path.join(storage, 'vms/deep')),
      hasCode('storage-unusable', /lies inside another storage/),
    )
  })

  it('is not on a network file system', async (t) => {
    const folder = path.join(await temporaryFolder(t), 'storage')
    await assert.rejects(
      openStorageFolder(folder, async () => 0x6969),
      hasCode('storage-unusable', /on a network file system \(NFS\)/),
    )
    assert.equal(networkFileSystem(0xff534d42 | 0), 'CIFS', 'statfs may give it as a negative number')
    assert.equal(networkFileSystem(0xef53), undefined, 'ext4')
  })

  it("is not another user's", { skip: process.getuid?.() === 0 ? false : 'needs root' }, async (t) => {
    const folder = path.join(await temporaryFolder(t), 'storage')
    await mkdir(folder)
    await chown(folder, 1234, 1234)
    await assert.rejects(
      openStorageFolder(folder),
      hasCode('permission-denied', /belongs to user 1234, and you are root/),
    )
  })

  it('has a path that can have others below it', async () => {
    await assert.rejects(openStorageFolder(`/tmp/${'x'.repeat(3_600)}`), hasCode('bad-request', /is 3605 bytes long/))
  })

  it('may be reached by a symbolic link, and may move', async (t) => {
    const folder = await temporaryFolder(t)
    ;(await SandboxStore.open(path.join(folder, 'old'))).close()
    await rename(path.join(folder, 'old'), path.join(folder, 'new'))
    await symlink('new', path.join(folder, 'link'))
    ;(await SandboxStore.open(path.join(folder, 'link'))).close()
  })

  it('is refused as a copy while sandboxes of the original run, and taken as its own afterwards', async (t) => {
    const folder = await temporaryFolder(t)
    const store = await SandboxStore.open(path.join(folder, 'original'))
    const { record } = await store.insert(sampleRecord({ state: { kind: 'creating', since } }))
    await store.makeDirectory(record.id)
    await store.takeNumbers(record.id)
    await store.transition(record.id, { state: { kind: 'running', since } })
    const directory = store.directoryOf(record.id)
    store.close()
    const vmm = runModule(
      t,
      import.meta.url,
      `process.chdir(args[0]); console.log('there'); setInterval(() => 0, 1000)`,
      [directory],
    )
    await vmm.printed('there')
    const identity = await identify(vmm.child.pid ?? 0)
    await writeFile(
      path.join(directory, 'run.json'),
      JSON.stringify({ shim: identity, vmm: identity, startedAt: since }),
    )
    const copy = path.join(folder, 'copy')
    await cp(path.join(folder, 'original'), copy, { recursive: true })
    await assert.rejects(
      SandboxStore.open(copy),
      hasCode('storage-unusable', /is a copy of the storage .*original: sandbox .* runs there/),
    )
    vmm.child.kill('SIGKILL')
    await vmm.done.catch(() => undefined)
    ;(await SandboxStore.open(copy)).close()
  })
})

describe('a storage without its database', () => {
  it("is refused where it has sandboxes, which would be taken for nobody's", async (t) => {
    const folder = await temporaryFolder(t)
    await mkdir(path.join(folder, 'vms/sbx_aaaaaaaaaa'), { recursive: true })
    await assert.rejects(
      SandboxStore.open(folder),
      hasCode('storage-unusable', /database of the storage .* is missing.*sbx_aaaaaaaaaa/),
    )
    assert.deepEqual(await readdir(path.join(folder, 'vms')), ['sbx_aaaaaaaaaa'])
  })

  it('of the version that kept files gives its sandboxes to the new one', async (t) => {
    const folder = await temporaryFolder(t)
    const directory = path.join(folder, 'vms/sbx_aaaaaaaaaa')
    await mkdir(directory, { recursive: true })
    await mkdir(path.join(folder, 'leases/cid'), { recursive: true })
    const { image, vcpu, memoryMib, diskMib, env, vsock, createdAt, timings } = sampleRecord()
    const record = {
      ...{
        version: 1,
        id: 'sbx_aaaaaaaaaa',
        name: 'old',
        image,
        vcpu,
        memoryMib,
        diskMib,
        env,
        vsock,
        createdAt,
        timings,
      },
      ...{ cid: 5, port: 9_007, state: { kind: 'running', since } },
    }
    await writeFile(path.join(directory, 'sandbox.json'), JSON.stringify(record))
    const store = await SandboxStore.open(folder)
    const entered = await store.read('sbx_aaaaaaaaaa')
    assert.deepEqual([entered?.name, entered?.cid, entered?.port, entered?.state.kind], ['old', 5, 9_007, 'running'])
    store.close()
    assert.equal((await readdir(folder)).includes('leases'), false)
  })
})
