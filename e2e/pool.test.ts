/** Sandboxes that wait to be taken: each is somebody's once, and there are always some. */
import assert from 'node:assert/strict'
import { after, before, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { cli } from './support/command-line.js'
import { boundedOrFull } from './support/scale.js'
import { type Opened, openWith, output, traces } from './support/snapshots.js'
import { processesIn, type TestStorage, temporaryStorage, until } from './support/storage.js'

const SIZE = 3
const TAKERS = boundedOrFull(5, 8)
const FILLING_MS = 120_000
const MAX_AGE_MS = 1_000
const options = { memoryMib: 128, diskMib: 64 }
const shape = ['--mem', '128', '--disk-size', '64']

let storage: TestStorage
let opened: Opened

before(async () => {
  storage = await temporaryStorage()
  // Without templates: what does not come of the pool boots, and nobody takes the one for the other.
  opened = await openWith(storage.folder)
})
after(async () => {
  await opened[Symbol.asyncDispose]()
  await storage[Symbol.asyncDispose]()
})

const pool = async () => {
  const [first] = await opened.bandsox.pools.list()
  assert.ok(first)
  return first
}
const isFull = () =>
  until(async () => (await pool()).ready === SIZE && (await pool()).making === 0, 'the pool', FILLING_MS)
const create = (over: object = {}) => opened.bandsox.create('bandsox/base', { ...options, ...over })

test('a pool is filled, and what is taken of it is the taker’s', async (t) => {
  const set = await cli(storage.folder, ['pool', 'set', 'bandsox/base', '--size', String(SIZE), ...shape, '--wait'])
  assert.equal(set.stdout, `Pool set: bandsox/base, ${SIZE} of ${SIZE} ready\n`, set.stderr)
  assert.deepEqual(await opened.bandsox.list(), [], 'what waits is nobody’s')
  const waiting = processesIn(storage.folder).filter(({ program }) => /^(qemu|firecracker)/.test(program)).length
  assert.equal(waiting, SIZE)
  const sandbox = await create({ name: 'taker', env: { A: '1' }, labels: { is: 'taken' }, metadata: { m: 1 } })
  const info = await sandbox.info()
  t.diagnostic(JSON.stringify(info.timings))
  assert.ok('pool' in info.timings, 'it was not taken of the pool')
  assert.deepEqual(
    [info.name, info.labels, info.metadata, info.state.kind],
    ['taker', { is: 'taken' }, { m: 1 }, 'running'],
  )
  assert.equal(await output(sandbox, 'echo $A $BANDSOX_SANDBOX_NAME; hostname'), '1 taker\ntaker')
  assert.ok(Date.parse(info.createdAt) > Date.now() - 60_000)
  assert.ok(Math.abs(Number(await output(sandbox, 'date +%s')) * 1000 - Date.now()) < 5_000)
  assert.deepEqual(
    (await opened.bandsox.list()).map(({ id }) => id),
    [sandbox.id],
  )
  await isFull()
  await assert.rejects(create({ name: 'taker', unique: true }), hasCode('name-taken'))
  const other = await create({ memoryMib: 136 })
  assert.ok(!('pool' in (await other.info()).timings), 'another shape is not in the pool')
  const { id } = await sandbox.snapshot()
  await sandbox.delete({ force: true })
  const restored = await opened.bandsox.snapshots.restore(id)
  assert.equal(await output(restored, 'echo $A'), '1')
  for (const each of [restored, other]) await each.delete({ force: true })
  await opened.bandsox.snapshots.delete(id)
})

test(`${TAKERS} at once get ${TAKERS} sandboxes, each its own`, async () => {
  await isFull()
  const sandboxes = await Promise.all(
    Array.from({ length: TAKERS }, (_, index) => create({ env: { N: String(index) } })),
  )
  assert.equal(new Set(sandboxes.map(({ id }) => id)).size, TAKERS)
  const infos = await Promise.all(sandboxes.map((sandbox) => sandbox.info()))
  assert.ok(infos.filter(({ timings }) => 'pool' in timings).length >= SIZE)
  assert.equal(new Set(infos.map(({ vmmPid }) => vmmPid)).size, TAKERS)
  const answers = await Promise.all(
    sandboxes.map((sandbox) => output(sandbox, 'echo $N $BANDSOX_SANDBOX_ID; cat /etc/machine-id')),
  )
  for (const [index, answer] of answers.entries()) assert.ok(answer.startsWith(`${index} ${sandboxes[index]?.id}\n`))
  assert.equal(new Set(answers.map((answer) => answer.split('\n')[1])).size, TAKERS)
  await Promise.all(sandboxes.map((sandbox) => sandbox.delete({ force: true })))
  await isFull()
})

test('what has waited too long is replaced, a smaller pool has fewer, and a removed one leaves nothing', async () => {
  const { bandsox } = opened
  const members = async () => (await traces(storage.folder))['folders'] as string[]
  const before = await members()
  await delay(MAX_AGE_MS + 100)
  await bandsox.pools.set('bandsox/base', { size: SIZE, ...options, maxAgeMs: MAX_AGE_MS })
  const isReplaced = async () => {
    await bandsox.pools.fill((await pool()).id) // or somebody else does
    const now = await members()
    return before.every((name) => !now.includes(name))
  }
  await until(isReplaced, 'what has waited too long to go', FILLING_MS)
  await bandsox.pools.set('bandsox/base', { size: 1, ...options, waits: true })
  await until(async () => (await pool()).ready === 1, 'a smaller pool', FILLING_MS)
  assert.equal((await members()).length, 1)
  const listed = await cli(storage.folder, ['pool', 'list'])
  assert.match(listed.stdout, /bandsox\/base +pool_\w+ +1 of 1 +0 +1 +128 MiB/)

  await assert.rejects(bandsox.pools.set('bandsox/base', { size: 0 }), hasCode('bad-request', /size: 0 is not allowed/))
  await assert.rejects(bandsox.pools.set('bandsox/base', { size: 1, maxAgeMs: 1 }), hasCode('bad-request'))
  await assert.rejects(bandsox.pools.remove('nobody'), hasCode('not-found'))
  const removed = await cli(storage.folder, ['pool', 'rm', 'bandsox/base'])
  assert.equal(removed.stdout, 'Pool removed: bandsox/base\n')
  assert.deepEqual(await bandsox.pools.list(), [])
  // Somebody is just making one for it.
  await bandsox.pools.set('bandsox/base', { size: SIZE, ...options })
  await until(async () => (await pool()).making > 0, 'somebody to fill it', FILLING_MS)
  await bandsox.pools.remove('bandsox/base')
  await until(
    async () => ((await traces(storage.folder))['sandboxes'] as string[]).length === 0,
    'all of it to go',
    30_000,
  )
  await bandsox.snapshots.list({ templates: true }).then(async (all) => {
    for (const { id } of all) await bandsox.snapshots.delete(id)
  })
  await until(() => processesIn(storage.folder).length === 0, 'what waited to end')
  await storage.assertNothingLeft()
})
