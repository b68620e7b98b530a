import assert from 'node:assert/strict'
import { existsSync, readdirSync } from 'node:fs'
import { mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { identifySelf } from '../process/identity.js'
import { hasCode } from '../testing/errors.js'
import { sampleRecord } from '../testing/sample-record.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { Database } from './database.js'
import { SandboxStore } from './sandbox-store.js'
import type { NewSnapshot, SnapshotRecord } from './snapshot-store.js'

const entry: NewSnapshot = {
  ...{ name: undefined, purpose: 'snapshot', templateKey: undefined, sandbox: 'sbx_aaaaaaaaaa', base: undefined },
  metadata: { of: ['a', 'test'] },
}
const done = { manifestDigest: 'd'.repeat(64), seals: { memory: { inode: '1', sizeBytes: 2, modifiedNs: '3' } } }

async function storeIn(t: TestScope): Promise<SandboxStore> {
  const store = await SandboxStore.open(path.join(await temporaryFolder(t), 'storage'))
  t.after(() => store.close())
  return store
}

async function taken({ snapshots }: SandboxStore, over: Partial<NewSnapshot> = {}): Promise<SnapshotRecord> {
  const unfinished = await snapshots.begin({ ...entry, ...over })
  assert.ok(unfinished)
  await writeFile(path.join(unfinished.folder, 'memory'), 'x')
  return await unfinished.publish(done)
}

/** Changes a row as no code of ours does: what another process may have left. */
async function change(store: SandboxStore, sql: string, values: Record<string, string | null>) {
  const database = await Database.open(path.join(store.root, 'bandsox.db'))
  try {
    await database.write((tables) => tables.change(sql, values))
  } finally {
    database.close()
  }
}

const foldersOf = ({ root }: SandboxStore) => readdirSync(path.join(root, 'snapshots'))

describe('a snapshot', () => {
  it('is there for nobody until it is whole, and then with all that was said of it', async (t) => {
    const store = await storeIn(t)
    const { snapshots } = store
    const unfinished = await snapshots.begin({ ...entry, name: 'one' })
    assert.ok(unfinished)
    assert.deepEqual(foldersOf(store), [`.new-${unfinished.id}`])
    assert.deepEqual([await snapshots.list(), await snapshots.read(unfinished.id)], [[], undefined])
    await assert.rejects(snapshots.find('one'), hasCode('not-found'))
    assert.deepEqual(await snapshots.remains(), [], 'its process lives')
    const record = await unfinished.publish(done)
    assert.deepEqual(foldersOf(store), [unfinished.id])
    assert.deepEqual(await snapshots.list(), [record])
    assert.deepEqual(
      [record.name, record.metadata, record.manifestDigest, record.seals, record.state, record.holder],
      ['one', entry.metadata, done.manifestDigest, done.seals, 'ready', undefined],
    )
    await unfinished.discard()
    assert.deepEqual(await snapshots.list(), [record], 'what was published is not discarded')
  })

  it('that is given up leaves nothing', async (t) => {
    const store = await storeIn(t)
    const unfinished = await store.snapshots.begin(entry)
    await writeFile(path.join(unfinished?.folder ?? '', 'memory'), 'x')
    await unfinished?.discard()
    await unfinished?.discard()
    assert.deepEqual([foldersOf(store), await store.snapshots.all()], [[], []])
  })

  it('is found by its id, by a prefix of that, and by its name, if only one is meant', async (t) => {
    const store = await storeIn(t)
    const { snapshots } = store
    const one = await taken(store, { name: 'name' })
    const other = await taken(store, { name: 'other' })
    await change(store, "UPDATE snapshots SET id = 'snp_aaaaaaaabb' WHERE id = $id", { id: one.id })
    await change(store, "UPDATE snapshots SET id = 'snp_aaaaaaaacc' WHERE id = $id", { id: other.id })
    for (const way of ['name', 'snp_aaaaaaaabb', 'aaaaaaaab']) assert.equal((await snapshots.find(way)).name, 'name')
    for (const way of ['aaaa', 'snp_aaaaaaaa']) await assert.rejects(snapshots.find(way), hasCode('ambiguous-name'))
    for (const way of ['', 'snp_', 'nobody', 'NAME', '%', 'snp_aaaaaaaabbb'])
      await assert.rejects(snapshots.find(way), hasCode('not-found'), way)
    await snapshots.describe('snp_aaaaaaaacc', { name: 'name' })
    await assert.rejects(snapshots.find('name'), hasCode('ambiguous-name', /snp_aaaaaaaabb, snp_aaaaaaaacc/))
    await assert.rejects(snapshots.describe('snp_aaaaaaaadd', { name: 'name' }), hasCode('not-found'))
  })

  it('is kept while another builds on it, and by who refuses its removal and is told of its running users', async (t) => {
    const store = await storeIn(t)
    const { snapshots } = store
    const base = await taken(store)
    const diff = await taken(store, { base: base.id })
    const claim = await store.insert(sampleRecord({ state: { kind: 'creating', since: '' }, restoredFrom: base.id }))
    const stopped = await store.insert(sampleRecord({ id: 'sbx_bbbbbbbbbb', restoredFrom: base.id }))
    await store.takeNumbers(claim.record.id)
    await assert.rejects(snapshots.remove(base.id), hasCode('snapshot-in-use', new RegExp(diff.id)))
    assert.ok(existsSync(path.join(snapshots.folderOf(base.id), 'memory')))
    await snapshots.remove(diff.id)
    await assert.rejects(
      snapshots.remove(base.id, (sandboxes) => {
        assert.deepEqual(sandboxes, [claim.record.id])
        throw new Error('kept')
      }),
      { message: 'kept' },
    )
    assert.deepEqual(foldersOf(store), [base.id])
    await snapshots.remove(base.id)
    assert.deepEqual([await snapshots.list(), foldersOf(store)], [[], []])
    await assert.rejects(snapshots.remove(base.id), hasCode('not-found'))
    for (const each of [claim, stopped]) await each.release().catch(() => undefined)
  })

  it('of a process that died is among the remains, and so is what has no row; foreign entries are not', async (t) => {
    const store = await storeIn(t)
    const { snapshots } = store
    const kept = await taken(store)
    const unfinished = await snapshots.begin(entry)
    assert.ok(unfinished)
    const dead = JSON.stringify({ ...(await identifySelf()), startTime: 1 })
    await change(store, 'UPDATE snapshots SET holder = $dead WHERE id = $id', { id: unfinished.id, dead })
    const deleting = await taken(store)
    await change(store, "UPDATE snapshots SET holder = $dead, state = 'deleting' WHERE id = $id", {
      ...{ id: deleting.id, dead },
    })
    for (const name of ['snp_ffffffffff', '.new-snp_gggggggggg', 'notes', '.new-notes'])
      await mkdir(path.join(store.root, 'snapshots', name))
    const remains = await snapshots.remains()
    assert.equal(remains.length, 4, JSON.stringify(remains))
    for (const { remove } of remains) await remove()
    assert.deepEqual(foldersOf(store).sort(), ['.new-notes', kept.id, 'notes'].sort())
    assert.deepEqual(await snapshots.all(), [kept])
    assert.deepEqual(await snapshots.remains(), [])
  })
})

describe('a template', () => {
  it('is one for each key, from the moment that somebody begins it', async (t) => {
    const store = await storeIn(t)
    const { snapshots } = store
    const template = { ...entry, purpose: 'template' as const, templateKey: 'k' }
    const begun = await Promise.all([1, 2, 3, 4].map(() => snapshots.begin(template)))
    const [one, ...others] = begun.filter((each) => each !== undefined)
    assert.ok(one)
    assert.deepEqual(others, [])
    assert.equal((await snapshots.template('k'))?.state, 'creating')
    assert.equal(await snapshots.template('other'), undefined)
    await one.publish(done)
    assert.equal((await snapshots.template('k'))?.id, one.id)
    assert.deepEqual(await snapshots.list(), [], 'it is no user’s')
    assert.equal((await snapshots.list(['template'])).length, 1)
    assert.equal((await snapshots.find(one.id)).purpose, 'template')
    await snapshots.remove(one.id)
    assert.ok(await snapshots.begin(template))
  })

  it('that could not be made is remembered for a while', async (t) => {
    const { snapshots } = await storeIn(t)
    await snapshots.templateFailed('k', 'no memory')
    await snapshots.templateFailed('k', 'no disk')
    assert.equal(await snapshots.templateFailure('k', new Date(Date.now() - 60_000)), 'no disk')
    assert.equal(await snapshots.templateFailure('k', new Date(Date.now() + 60_000)), undefined)
    assert.equal(await snapshots.templateFailure('other', new Date(0)), undefined)
  })
})
