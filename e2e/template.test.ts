/** Sandboxes that start by being restored: from a template that was made by itself, or has to be booted after all. */
import assert from 'node:assert/strict'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { type CreateOptions, openBandSox } from 'bandsox'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { cli } from './support/command-line.js'
import { flip, type Opened, openWith, output, traces } from './support/snapshots.js'
import { type TestStorage, temporaryStorage, until } from './support/storage.js'

/** Another process boots it, saves it, restores it, and looks at its clock twice. */
const MAKING_MS = 90_000
const options = { memoryMib: 128, diskMib: 64 }

let storage: TestStorage
let opened: Opened
let template: string

before(async () => {
  storage = await temporaryStorage()
  opened = await openWith(storage.folder, { templates: true })
})
after(async () => {
  await opened[Symbol.asyncDispose]()
  await storage[Symbol.asyncDispose]()
})

const templates = async () =>
  (await opened.bandsox.snapshots.list({ templates: true })).filter(({ purpose }) => purpose === 'template')

async function made(over: CreateOptions = {}) {
  const sandbox = await opened.bandsox.create('bandsox/base', { ...options, ...over })
  const { restoredFrom, timings, memoryMib } = await sandbox.info()
  return {
    restoredFrom,
    timings,
    memoryMib,
    sandbox,
    [Symbol.asyncDispose]: () => sandbox[Symbol.asyncDispose](),
  }
}

test('the first sandbox boots, and another process makes a template, which the second one starts from', async (t) => {
  {
    await using first = await made()
    assert.equal(first.restoredFrom, null)
    assert.ok(
      Object.keys(first.timings).some((stage) => stage.startsWith('guest.')),
      'it was not booted',
    )
    // Meanwhile one more boots as well, and has no second one made.
    await using other = await made({ cold: true })
    assert.equal(other.restoredFrom, null)
    await until(async () => (await templates()).length > 0, 'the template', MAKING_MS)
    assert.deepEqual((await opened.bandsox.list()).length, 2, 'what a template is made with is nobody’s to see')
  }
  const [only, ...others] = await templates()
  assert.ok(only)
  assert.deepEqual(others, [])
  template = only.id
  assert.deepEqual([only.purpose, only.isFrozen, only.memoryMib], ['template', true, 128])
  assert.deepEqual(await opened.bandsox.snapshots.list(), [], 'it is no user’s')

  await using second = await made({ name: 'second', env: { A: '1' }, labels: { is: 'second' }, unique: true })
  assert.equal(second.restoredFrom, template)
  t.diagnostic(JSON.stringify(second.timings))
  assert.ok(Object.keys(second.timings).every((stage) => !stage.startsWith('guest.')))
  assert.equal(await output(second.sandbox, 'echo $A $BANDSOX_SANDBOX_NAME; hostname'), '1 second\nsecond')
  assert.deepEqual((await second.sandbox.info()).labels, { is: 'second' })
  await using third = await made()
  const seed = 'cat /proc/sys/kernel/random/uuid /etc/machine-id'
  assert.notEqual(await output(second.sandbox, seed), await output(third.sandbox, seed))
  await assert.rejects(made({ name: 'second', unique: true }), hasCode('name-taken'))
  assert.equal((await templates()).length, 1, 'what speaks against a sandbox does not speak against the template')

  await using cold = await made({ cold: true })
  assert.equal(cold.restoredFrom, null)
})

test('another shape has another one, and the command line makes, lists and removes them', async () => {
  const make = (...words: string[]) =>
    cli(storage.folder, ['template', 'make', 'bandsox/base', '--disk-size', '64', ...words])
  const again = await make('--mem', '128')
  assert.match(again.stdout, /^Template is there, or being made: bandsox\/base\n$/, again.stderr)
  // Of three who make it at once one does.
  const results = await Promise.all([1, 2, 3].map(() => make('--mem', '160')))
  assert.deepEqual(
    results.map(({ stdout }) => stdout.split(':')[0]).sort(),
    ['Template is there, or being made', 'Template is there, or being made', 'Template made'],
    JSON.stringify(results),
  )
  assert.equal((await templates()).length, 2)
  await using larger = await made({ memoryMib: 160 })
  const [other] = (await templates()).filter(({ id }) => id !== template)
  assert.equal(larger.restoredFrom, other?.id)
  assert.equal(larger.memoryMib, 160)
  const listed = await cli(storage.folder, ['template', 'list'])
  assert.match(listed.stdout, new RegExp(`${template} +template .*bandsox/base +128 MiB`))
  const removed = await cli(storage.folder, ['template', 'rm', other?.id ?? ''])
  assert.equal(removed.stdout, `Template removed: ${other?.id}\n`)
  assert.equal(await output(larger.sandbox, 'echo goes on'), 'goes on')
})

test('one that is damaged is removed, which is told, and the sandbox boots', async () => {
  await flip(path.join(storage.folder, 'snapshots', template, 'devices'), 100_000)
  opened.warnings.length = 0
  {
    await using sandbox = await made()
    assert.equal(sandbox.restoredFrom, null)
    assert.match(
      opened.warnings.join('\n'),
      new RegExp(`template ${template} is of no use any more.*devices of snapshot`),
    )
    assert.ok((await templates()).every(({ id }) => id !== template))
    await until(async () => (await templates()).length === 1, 'another template', MAKING_MS)
  }
  await using sandbox = await made()
  assert.notEqual(sandbox.restoredFrom, null)
  assert.notEqual(sandbox.restoredFrom, template)
})

test('who wants none gets none, and nothing of their making is left', async () => {
  const off = await openBandSox({ storage: storage.folder })
  const sandbox = await off.create('bandsox/base', options)
  assert.equal((await sandbox.info()).restoredFrom, null)
  await sandbox.delete({ force: true })
  const removed = await cli(storage.folder, ['template', 'rm'])
  assert.match(removed.stdout, /^Template removed: snp_\w+\n$/)
  await until(async () => JSON.stringify(await traces(storage.folder)) === NOTHING, 'makers to end').catch(
    () => undefined,
  )
  assert.equal(JSON.stringify(await traces(storage.folder)), NOTHING)
})

const NOTHING = JSON.stringify({ sandboxes: [], snapshots: [], folders: [], snapshotFolders: [], processes: [] })
