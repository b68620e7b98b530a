import assert from 'node:assert/strict'
import { mkdir, readdir, stat, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { identify } from '../process/identity.js'
import { hasCode } from '../testing/errors.js'
import { sampleRecord } from '../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import type { SandboxRecord } from './record.js'
import { newSandboxId, SandboxStore } from './sandbox-store.js'

async function storeWith(t: TestScope, ...records: SandboxRecord[]): Promise<SandboxStore> {
  const store = new SandboxStore(path.join(await temporaryFolder(t), 'storage'))
  await store.open()
  for (const record of records) {
    await (await store.makeDirectory(record.id))()
    await store.write(record)
  }
  return store
}

const idOf = async (store: SandboxStore, name: string) => (await store.find(name)).id

describe('the store', () => {
  it('keeps a record, and keeps others out of the folders', async (t) => {
    const record = sampleRecord({ id: 'sbx_aaaaaaaaaa', name: 'one' })
    const store = await storeWith(t, record)
    assert.deepEqual(await store.read(record.id), record)
    assert.deepEqual(await store.ids(), [record.id])
    const mode = async (...parts: string[]) => ((await stat(path.join(store.root, ...parts))).mode & 0o777).toString(8)
    assert.deepEqual([await mode(), await mode('vms'), await mode('vms', record.id)], ['700', '700', '711'])
    assert.equal(await mode('vms', record.id, 'sandbox.json'), '600')
  })

  it('finds by id, by unique prefix with or without sbx_, and by name', async (t) => {
    const store = await storeWith(
      t,
      sampleRecord({ id: 'sbx_abcaaaaaaa', name: 'web' }),
      sampleRecord({ id: 'sbx_abdaaaaaaa' }),
      sampleRecord({ id: 'sbx_xyzaaaaaaa', name: 'abd' }),
    )
    assert.equal(await idOf(store, 'sbx_abcaaaaaaa'), 'sbx_abcaaaaaaa')
    assert.equal(await idOf(store, 'sbx_abd'), 'sbx_abdaaaaaaa')
    assert.equal(await idOf(store, 'xy'), 'sbx_xyzaaaaaaa')
    assert.equal(await idOf(store, 'web'), 'sbx_abcaaaaaaa')
    assert.equal(await idOf(store, 'abd'), 'sbx_xyzaaaaaaa') // a name goes before a prefix
    for (const none of ['zzz', '', 'we', '../vms', 'sbx_', 's', '*']) {
      await assert.rejects(store.find(none), hasCode('not-found'), none)
    }
    await assert.rejects(
      store.find('ab'),
      hasCode('ambiguous-name', /"ab" means 2 sandboxes: sbx_abcaaaaaaa, sbx_abdaaaaaaa/),
    )
  })

  it('does not choose between sandboxes of one name', async (t) => {
    const store = await storeWith(
      t,
      sampleRecord({ id: 'sbx_aaaaaaaaaa', name: 'web' }),
      sampleRecord({ id: 'sbx_bbbbbbbbbb', name: 'web' }),
    )
    await assert.rejects(store.find('web'), hasCode('ambiguous-name', /sbx_aaaaaaaaaa, sbx_bbbbbbbbbb/))
    assert.equal(await idOf(store, 'sbx_b'), 'sbx_bbbbbbbbbb')
  })

  it('names what is damaged', async (t) => {
    const store = await storeWith(t, sampleRecord({ id: 'sbx_aaaaaaaaaa' }))
    await writeFile(path.join(store.directoryOf('sbx_aaaaaaaaaa'), 'sandbox.json'), '{"version": 2}')
    await assert.rejects(store.read('sbx_aaaaaaaaaa'), hasCode('artifact-damaged', /sbx_aaaaaaaaaa\/sandbox\.json/))
  })

  it('has no record of what it does not have', async (t) => {
    const store = await storeWith(t)
    assert.equal(await store.read('sbx_aaaaaaaaaa'), undefined)
    assert.deepEqual(await new SandboxStore('/no/such/folder').ids(), [])
    await assert.rejects(store.find('x'), hasCode('not-found', /there is no sandbox "x"/))
  })

  it('removes all of a sandbox, and does not mind doing it twice', async (t) => {
    const store = await storeWith(t, sampleRecord({ id: 'sbx_aaaaaaaaaa' }))
    await mkdir(path.join(store.directoryOf('sbx_aaaaaaaaaa'), 'vsock'))
    await store.remove('sbx_aaaaaaaaaa')
    await store.remove('sbx_aaaaaaaaaa')
    assert.deepEqual(await readdir(path.join(store.root, 'vms')), [])
  })

  it('finishes the removals of a process that was killed', async (t) => {
    const store = await storeWith(t, sampleRecord({ id: 'sbx_aaaaaaaaaa' }))
    // What a removal has done when it is killed after its first step.
    const half = path.join(store.root, 'vms', '.removed-sbx_bbbbbbbbbb')
    await mkdir(path.join(half, 'vsock'), { recursive: true })
    await writeFile(path.join(half, 'overlay.ext4'), 'x')
    assert.deepEqual(await store.ids(), ['sbx_aaaaaaaaaa'])
    await store.finishRemovals()
    assert.deepEqual(await readdir(path.join(store.root, 'vms')), ['sbx_aaaaaaaaaa'])
  })

  it('leaves a creation alone that has no record yet, unless its process has died', async (t) => {
    const store = await storeWith(t)
    const unlock = await store.makeDirectory('sbx_aaaaaaaaaa')
    await store.makeDirectory('sbx_bbbbbbbbbb')
    const dead = { operation: 'create', pid: 2 ** 22 + 1, startTime: 1 }
    await writeFile(path.join(store.directoryOf('sbx_bbbbbbbbbb'), 'operation.lock'), JSON.stringify(dead))
    const vms = path.join(store.root, 'vms')
    // What is left of one that was killed before its directory had a name, and one of a living process that is at it.
    await mkdir(path.join(vms, `.creating-${dead.pid}-1-sbx_cccccccccc`))
    const self = await identify(process.pid)
    const own = `.creating-${process.pid}-${self?.startTime}-sbx_dddddddddd`
    await mkdir(path.join(vms, own))
    await store.finishRemovals()
    assert.deepEqual(await store.ids(), ['sbx_aaaaaaaaaa'])
    assert.deepEqual((await readdir(vms)).sort(), [own, 'sbx_aaaaaaaaaa'])
    await unlock()
  })

  it('makes ids that are different, and can be typed', () => {
    const ids = new Set(Array.from({ length: 1_000 }, newSandboxId))
    assert.equal(ids.size, 1_000)
    for (const id of ids) assert.match(id, /^sbx_[a-z2-7]{10}$/)
  })
})
