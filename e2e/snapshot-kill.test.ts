/** Whoever is killed while states are saved and loaded, and whenever: what is listed is whole, what ran goes on, and nothing is left over. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { chmod } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { type BandSox, openBandSox, type Sandbox, type StateName } from 'bandsox'
import { Agent } from 'bandsox/internal/guest/agent.js'
import { statFile } from 'bandsox/internal/guest/inspect.js'
import { socketLink } from 'bandsox/internal/link/socket-link.js'
import { readRun } from 'bandsox/internal/process/shim.js'
import { SandboxStore } from 'bandsox/internal/store/sandbox-store.js'
import { seededRandom } from 'bandsox/internal/testing/random.js'
import { QMP_SOCKET } from 'bandsox/internal/vmm/qemu/command-line.js'
import { withQmp } from 'bandsox/internal/vmm/qemu/qmp.js'
import { cli, startCli } from './support/command-line.js'
import { commandsOf, type Moment, momentOf, momentText, passingPaths, untilQuiet } from './support/kill-points.js'
import { stateHost } from './support/qemu-state.js'
import { boundedOrFull } from './support/scale.js'
import { namesIn, onlyOnQemu, processesIn, temporaryStorage, until, VMM_PROGRAM } from './support/storage.js'

const SEED = Number(process.env['BANDSOX_CHAOS_SEED'] ?? 20_261_130)
const KILLS = Number(process.env['BANDSOX_CHAOS_KILLS'] ?? boundedOrFull(5, 100))
const IMAGE = 'bandsox/base'
const SHAPE = { memoryMib: 128, diskMib: 64 }
const SHAPE_WORDS = ['--mem', '128', '--disk-size', '64']
const CHILDREN = 2
/** Another process fills the pool again, behind everything else. */
const REFILL_MS = 90_000
const COMMAND_MS = 60_000

/** What the scene is played with. */
interface World {
  storage: string
  bandsox: BandSox
  /** It runs a program that counts. */
  source: Sandbox
  /** Of the source. */
  snapshot: string
  /** As long as it has been booted. */
  hasVsock: boolean
}

interface Scene {
  needs: 'running' | 'paused' | 'hibernated'
  /** What the source may be afterwards. */
  leaves: readonly StateName[]
  prepare?: (world: World) => Promise<unknown>
  args: (world: World) => string[]
  /** How many sandboxes there may be afterwards that were not there before, other than none. */
  makes?: number
  /** Others than after a while, at which it may be killed. */
  points: readonly Moment[]
  after?: (world: World) => Promise<unknown>
}

const at = (...files: RegExp[]): Moment[] => files.map((file) => ({ file }))
const SAVING = at(
  /^snapshots\/\.new-[^/]+$/,
  /^vms\/[^/]+\/save-[^/]+\.sock$/,
  /^snapshots\/\.new-[^/]+\/memory$/,
  /^vms\/[^/]+\/saved\/memory$/,
  /^snapshots\/\.new-[^/]+\/overlay\.ext4$/,
)
const PUBLISHING = at(/^snapshots\/\.new-[^/]+\/manifest\.json$/, /^snapshots\/snp_[^/]+$/)
const STARTING = at(/^vms\/[^/]+\/shim\.json$/, /^vms\/[^/]+\/loaded\/memory$/, /^vms\/[^/]+\/run\.json$/)
const LOADING = [...at(/^vms\/[^/]+$/), ...STARTING]

const emptyPool = ({ bandsox }: World) => bandsox.pools.set(IMAGE, { ...SHAPE, size: 1, waits: true })

const scenes: Record<string, Scene> = {
  snapshot: {
    ...{ needs: 'running', leaves: ['running'], points: [...SAVING, ...PUBLISHING] },
    args: ({ source }) => ['vm', 'save', source.id],
  },
  restore: {
    ...{ needs: 'running', leaves: ['running'], makes: 1, points: LOADING },
    args: ({ snapshot }) => ['snapshot', 'restore', snapshot],
  },
  fork: {
    ...{ needs: 'running', leaves: ['running'], makes: CHILDREN, points: [...SAVING, ...LOADING] },
    args: ({ source }) => ['vm', 'fork', source.id, '--count', String(CHILDREN)],
  },
  hibernate: {
    ...{ needs: 'running', leaves: ['running', 'hibernated'] },
    args: ({ source }) => ['vm', 'hibernate', source.id],
    points: at(
      ...[/\/save-[^/]+\.sock$/, /\/hibernated\.new\/memory$/, /\/hibernated\.new\/hibernated\.json$/],
      /\/hibernated$/,
    ),
  },
  refill: {
    ...{ needs: 'running', leaves: ['running'], points: LOADING, prepare: emptyPool },
    args: () => ['pool', 'set', IMAGE, ...SHAPE_WORDS, '--size', '2', '--wait'],
    after: ({ bandsox }) => poolIsFull(bandsox),
  },
  resume: {
    ...{ needs: 'hibernated', leaves: ['running', 'hibernated'] },
    // At the last one it runs by the record, and its guest does not know yet who it is.
    points: [...STARTING, { gone: /\/hibernated$/ }],
    args: ({ source }) => ['vm', 'resume', source.id],
  },
  'snapshot of a paused one': {
    ...{ needs: 'paused', leaves: ['paused'], points: [...SAVING, ...PUBLISHING] },
    args: ({ source }) => ['vm', 'save', source.id],
  },
  pause: {
    ...{ needs: 'running', leaves: ['running', 'paused'], points: [] },
    args: ({ source }) => ['vm', 'pause', source.id],
  },
  'resume of a paused one': {
    ...{ needs: 'paused', leaves: ['running', 'paused'], points: [] },
    args: ({ source }) => ['vm', 'resume', source.id],
  },
  'taking from a pool': {
    ...{ needs: 'running', leaves: ['running'], makes: 1, points: [], prepare: emptyPool },
    args: () => ['create', IMAGE, ...SHAPE_WORDS],
    after: ({ bandsox }) => poolIsFull(bandsox),
  },
  template: {
    ...{ needs: 'running', leaves: ['running'], points: [...LOADING, ...SAVING, ...PUBLISHING] },
    prepare: async ({ bandsox, storage }) => {
      await bandsox.pools.remove(IMAGE).catch(() => undefined) // there need not be one
      await untilQuiet(storage, REFILL_MS)
      const all = await bandsox.snapshots.list({ templates: true })
      for (const { id } of all.filter(({ purpose }) => purpose === 'template'))
        await bandsox.snapshots.delete(id, { force: true })
    },
    args: () => ['template', 'make', IMAGE, ...SHAPE_WORDS],
  },
}
const names = Object.keys(scenes)
/** Until a process of Node's has read our code, nothing has happened. */
const STARTING_MS = 300
const SETTLING_MS = 400

test(`after ${KILLS} kills -9 at random moments of saving and loading all is in order (seed ${SEED})`, {
  skip: onlyOnQemu('its machines are those of a stand-in, which runs no programs'),
}, async (t) => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  const source = await bandsox.create(IMAGE, { ...SHAPE, cold: true })
  const before = kibOf(storage.folder)
  await beginToCount(source)
  const { id: snapshot } = await source.snapshot({ name: 'first' })
  const hasVsock = (await source.info()).vsock !== null
  const world = { storage: storage.folder, bandsox, source, snapshot, hasVsock }
  const random = seededRandom(SEED)
  const durations = new Map<string, number>()
  let killed = 0
  for (let kill = 0; kill < KILLS; kill++) {
    const name = names[kill % names.length] ?? ''
    const scene = scenes[name] as Scene
    // In a few kills it is all the same, and the first ones take about as long as each other.
    const measured = boundedOrFull(1, KILLS)
    if (!durations.has(name) && durations.size < measured)
      durations.set(name, (await durationOf(world, scene)) - STARTING_MS)
    const wholeMs = durations.get(name) ?? durations.get('snapshot') ?? 0
    const isAtFile = scene.points.length > 0 && random.below(2) === 0
    const moment: Moment = isAtFile ? random.pick(scene.points) : { afterMs: STARTING_MS + random.below(wholeMs) }
    const settlerMs = random.below(3) === 0 ? STARTING_MS + random.below(SETTLING_MS) : undefined
    await t.test(`kill ${kill}: ${name} ${momentText(moment)} of ${wholeMs} ms`, async () => {
      if (await killIn(world, scene, moment, settlerMs)) killed++
    })
  }
  t.diagnostic(`${killed} of ${KILLS} were killed before their end`)
  assert.ok(killed >= KILLS / 2, `only ${killed} of ${KILLS} were killed before their end`)
  for (const { image } of await bandsox.pools.list()) await bandsox.pools.remove(image)
  await untilQuiet(storage.folder, REFILL_MS)
  await source.delete({ force: true })
  for (const { id } of await bandsox.snapshots.list({ templates: true })) await bandsox.snapshots.delete(id)
  assert.equal((await cli(storage.folder, ['cleanup'])).status, 0)
  await storage.assertNothingLeft()
  assert.deepEqual(passingPaths(storage.folder), [])
  const lost = kibOf(storage.folder) - before
  assert.ok(Math.abs(lost) < 512, `${lost} KiB of the storage were lost`)
})

const victims = {
  tool: {
    isOf: (storage: string) => commandsOf(storage, 'split-state'),
    leaves: 'running',
    says: /cannot save|could not save|split-state was ended by SIGKILL/,
  },
  VMM: {
    isOf: (storage: string) => programsOf(storage, VMM_PROGRAM),
    leaves: 'failed',
    says: /has ended while it stood still: .*SIGKILL/,
  },
  // The last one: who takes its place cannot tell how a VMM ended.
  shim: { isOf: (storage: string) => programsOf(storage, /^bandsox-shim/), leaves: 'running', says: undefined },
} as const

test('who is killed beside a manager that saves is told of, and the sandbox goes on where it can', {
  skip: onlyOnQemu('its machines are those of a stand-in, which runs no programs'),
}, async (t) => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  const source = await bandsox.create(IMAGE, { ...SHAPE, cold: true })
  await beginToCount(source)
  const files = [/^snapshots\/\.new-[^/]+\/memory$/, /^snapshots\/\.new-[^/]+$/].slice(0, boundedOrFull(1, 2))
  for (const [name, { isOf, leaves, says }] of Object.entries(victims))
    for (const file of files)
      await t.test(`the ${name} ${momentText({ file })}`, async () => {
        if ((await source.info()).state.kind !== 'running') {
          await source.start()
          await beginToCount(source)
        }
        const child = startCli(storage.folder, ['vm', 'save', source.id])
        let stderr = ''
        child.stderr?.on('data', (chunk) => (stderr += String(chunk)))
        child.stdout?.resume()
        child.stdin?.end()
        const closed = once(child, 'close')
        await momentOf({ file }, storage.folder, child)
        await until(() => isOf(storage.folder).length > 0 || child.exitCode !== null, `the ${name}`)
        // By then the tool has begun to work.
        if (name === 'tool') await momentOf({ afterMs: 2 }, storage.folder, child)
        for (const { pid } of isOf(storage.folder)) killProcess(pid)
        const [status] = (await closed) as [number | null]
        const { state } = await source.info()
        assert.equal(state.kind, leaves, stderr)
        if (says !== undefined && status !== 0) assert.match(stderr, says)
        if (leaves === 'running') await goesOn(source)
        else assert.notEqual(status, 0, 'a snapshot of what has ended')
        const whole = await bandsox.snapshots.list()
        assert.equal(whole.length, status === 0 ? 1 : 0)
        for (const { id } of whole) {
          await bandsox.snapshots.verify(id)
          await bandsox.snapshots.delete(id)
        }
        await assertNothingStrange(storage.folder)
      })
  await source.delete({ force: true })
  await storage.assertNothingLeft()
  assert.deepEqual(passingPaths(storage.folder), [])
})

test('whom a killed manager leaves frozen goes on as soon as somebody asks for something', async (t) => {
  await using storage = await temporaryStorage()
  await using sandbox = await (await openBandSox({ storage: storage.folder })).create(IMAGE, SHAPE)
  const { directory, vsock } = await sandbox.info()
  // Beside the sandbox's own, which sets right what it finds.
  const agent = new Agent([socketLink('serial', path.join(directory, 'serial.sock'), vsock?.port ?? 9000)])
  t.after(() => agent.close())
  await beginToCount(sandbox)
  const hook = '#!/bin/sh\ntouch /tmp/hook-began\nsleep 1\n'
  await sandbox.files.write('/etc/bandsox/hooks/snapshot.d/10-slow', hook, { makeParents: true, mode: 0o755 })
  const child = startCli(storage.folder, ['vm', 'save', sandbox.id])
  const closed = once(child, 'close')
  const isThere = async () => await sandbox.files.stat('/tmp/hook-began').then(Boolean, () => false)
  await until(isThere, 'the hook to begin')
  child.kill('SIGKILL')
  await closed
  // The guest does what it was asked to do, though nobody is there any more who would let it go on.
  const countedAt = async () => (await statFile(agent, '/tmp/count')).modifiedAt
  await until(async () => {
    const before = await countedAt()
    await delay(300)
    return (await countedAt()) === before
  }, 'it to stand still')
  const askedAt = performance.now()
  await goesOn(sandbox)
  assert.ok(performance.now() - askedAt < 15_000, 'it was waited for in vain first')
})

test('a machine that is let go on while its state is being saved for nobody runs on', {
  skip: onlyOnQemu('its VMM saves its state before it answers'),
}, async () => {
  await using storage = await temporaryStorage()
  await using host = await stateHost(storage.folder, { memoryMib: 128 })
  const { sandbox, machine } = host
  await beginToCount(sandbox)
  await machine.pause()
  const { directory } = await sandbox.info()
  const socket = path.join(directory, 'save-test.sock')
  const connections: Socket[] = []
  const reader = createServer((connection) => void connections.push(connection.pause().on('error', () => undefined)))
  await new Promise<void>((resolve) => reader.listen(socket, resolve))
  await chmod(socket, 0o777) // the VMM is another user's
  const monitor = path.join(directory, QMP_SOCKET)
  const migration = async () => (await withQmp(monitor, (qmp) => qmp.execute('query-migrate'))) as { status?: string }
  await withQmp(monitor, (qmp) => qmp.execute('migrate', { uri: 'unix:save-test.sock' }))
  await until(async () => (await migration()).status === 'active', 'QEMU to begin')
  await machine.resume()
  assert.equal((await migration()).status, 'cancelled')
  reader.close()
  for (const connection of connections) connection.destroy() // which would not hear of its end
  assert.equal((await sandbox.info()).state.kind, 'running')
  await goesOn(sandbox)
  assert.equal((await sandbox.info()).state.kind, 'running')
})

const programsOf = (storage: string, program: RegExp): { pid: number }[] =>
  processesIn(storage).filter((each) => program.test(each.program))

function killProcess(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has just ended by itself.
  }
}

/** How long it takes when nobody is killed. */
async function durationOf(world: World, scene: Scene): Promise<number> {
  await makeReady(world, scene)
  const known = await idsOf(world)
  const startedAt = performance.now()
  const { status, stderr } = await cli(world.storage, scene.args(world))
  const took = Math.round(performance.now() - startedAt)
  assert.equal(status, 0, stderr)
  await assertInOrder(world, scene, known)
  return took
}

/** @returns Whether it was killed before its end. */
async function killIn(world: World, scene: Scene, moment: Moment, settlerMs: number | undefined): Promise<boolean> {
  await makeReady(world, scene)
  const known = await idsOf(world)
  const count = (await world.source.info()).state.kind === 'running' ? await countOf(world.source) : 0
  const child = startCli(world.storage, scene.args(world))
  child.stdout?.resume()
  child.stderr?.resume()
  child.stdin?.end()
  const closed = once(child, 'close')
  await momentOf(moment, world.storage, child)
  child.kill('SIGKILL')
  const [status] = (await closed) as [number | null]
  // Who sets right what there is may be killed too; then two commands do so at once.
  if (settlerMs !== undefined) {
    const settler = startCli(world.storage, ['vm', 'list'])
    const ended = once(settler, 'close')
    await momentOf({ afterMs: settlerMs }, world.storage, settler)
    settler.kill('SIGKILL')
    await ended
  }
  const next = ['list', 'list'].map((word) => cli(world.storage, ['vm', word]))
  for (const listing of next) {
    const listed = await Promise.race([listing, delay(COMMAND_MS, undefined, { ref: false })])
    assert.equal(listed?.status, 0, listed?.stderr ?? 'the next command hangs')
  }
  await assertInOrder(world, scene, known)
  assert.ok((await countOf(world.source)) >= count, 'it went back in time')
  return status === null
}

async function makeReady(world: World, scene: Scene): Promise<void> {
  const { source, hasVsock } = world
  await scene.prepare?.(world)
  const { state, vsock } = await source.info()
  // A machine that was loaded from a state has no vsock device that could be lost.
  if (state.kind === 'running' && vsock === null && hasVsock && scene.needs !== 'hibernated') {
    await source.restart()
    await beginToCount(source)
  }
  if (state.kind === scene.needs) return
  if (state.kind !== 'running') await source.resume()
  if (scene.needs === 'paused') await source.pause()
  if (scene.needs === 'hibernated') await source.hibernate()
}

const idsOf = async ({ bandsox }: World): Promise<string[]> => (await bandsox.list()).map(({ id }) => id)

async function assertInOrder(world: World, scene: Scene, known: string[]): Promise<void> {
  const { storage, source } = world
  // Another process has set right what there was by now, and this one finds nothing more.
  const bandsox = await openBandSox({ storage })
  const infos = await bandsox.list()
  const { state } = await source.info()
  assert.ok(scene.leaves.includes(state.kind), `the source is ${state.kind}`)
  if (state.kind === 'paused') await assertStandsStill(source)
  for (const { id, operation } of infos) assert.equal(operation, null, `${id} is still at ${operation?.name}`)
  const made = infos.map(({ id }) => id).filter((id) => !known.includes(id))
  assert.ok([0, scene.makes ?? 0].includes(made.length), `${made.length} sandboxes are there that nobody has got`)
  await scene.after?.({ ...world, bandsox })
  await assertNothingStrange(storage)
  await goesOn(source)
  // Of a machine that was loaded there is none.
  if ((await source.info()).vsock !== null) await assertHasVsock(source)
  for (const id of made) {
    const sandbox = await bandsox.get(id)
    assert.equal((await sandbox.exec(['echo', 'well']).collect()).stdout, 'well\n', `${id} does not work`)
    await sandbox.delete({ force: true })
  }
  await assertSnapshotsWhole({ ...world, bandsox })
  assert.deepEqual(
    namesIn(path.join(storage, 'vms', source.id)).filter((name) => /^(save-|saved$|hibernated|.*\.tmp$)/.test(name)),
    [],
    'of the source there is something left',
  )
}

async function assertHasVsock(source: Sandbox): Promise<void> {
  try {
    assert.equal((await source.exec(['echo', 'well'], { link: 'vsock' }).collect()).stdout, 'well\n')
  } catch (error) {
    throw new Error(`its vsock does not work: ${JSON.stringify(await source.links())}`, { cause: error })
  }
}

async function assertStandsStill(source: Sandbox): Promise<void> {
  const { directory } = await source.info()
  assert.equal((await readRun(directory)).status?.status, 'paused')
  await source.resume()
}

/** Rows, folders, processes, sockets and numbers agree. */
async function assertNothingStrange(storage: string): Promise<void> {
  const store = await SandboxStore.open(storage)
  try {
    const [rows, snapshots, pools] = [await store.list(), await store.snapshots.all(), await store.pools.list()]
    const known = new Set(pools.map(({ id }) => id))
    for (const { id, pool, operation } of rows) {
      assert.ok(pool === undefined || known.has(pool), `${id} is in ${pool}, and nobody can take it`)
      assert.equal(operation, undefined, `${id} is at ${operation?.name}`)
    }
    assert.deepEqual(namesIn(path.join(storage, 'vms')), rows.map(({ id }) => id).sort(), 'folders and records differ')
    const notWhole = snapshots.filter(({ state }) => state !== 'ready')
    assert.deepEqual(notWhole, [], 'snapshots that are not whole')
    const folders = namesIn(path.join(storage, 'snapshots'))
    assert.deepEqual(folders, snapshots.map(({ id }) => id).sort(), 'folders and records of snapshots differ')
    const live = rows.filter(({ state }) => state.kind === 'running' || state.kind === 'paused')
    await until(() => commandsOf(storage, 'split-state').length === 0, 'the tools that take states apart to end')
    const programs = (id: string) =>
      processesIn(storage)
        .filter(({ cwd }) => cwd.startsWith(path.join(storage, 'vms', id)))
        .map(({ program }) => (VMM_PROGRAM.test(program) ? 'vmm' : program))
        .filter((program) => program !== 'vhost-device-vsock')
        .sort()
    for (const { id } of live) assert.deepEqual(programs(id), ['bandsox-shim', 'vmm'], `processes of ${id}`)
    const isOfLive = (cwd: string) => live.some(({ id }) => cwd.startsWith(path.join(storage, 'vms', id)))
    await until(() => processesIn(storage).every(({ cwd }) => isOfLive(cwd)), 'processes of nobody to end')
    const { cids, ports } = await store.numbers()
    assert.equal(ports.used_ports.length, live.length, 'ports of nobody')
    assert.equal(cids.next_cid - 3 - cids.free_cids.length, live.length, 'a CID was lost')
    assert.equal(readFileSync('/proc/mounts', 'utf8').includes(storage), false, 'a mount was left')
  } finally {
    store.close()
  }
}

/** All that are listed but the first are also restored, and removed. */
async function assertSnapshotsWhole({ bandsox, snapshot }: World): Promise<void> {
  for (const { id, purpose } of await bandsox.snapshots.list({ templates: true })) {
    await bandsox.snapshots.verify(id)
    if (id === snapshot || purpose === 'template') continue
    {
      await using restored = await bandsox.snapshots.restore(id)
      await goesOn(restored)
    }
    await bandsox.snapshots.delete(id)
  }
}

async function poolIsFull(bandsox: BandSox): Promise<void> {
  const isFull = async () =>
    (await bandsox.pools.list()).every(({ ready, making, size }) => ready === size && making === 0)
  await until(isFull, 'the pool to be filled', REFILL_MS)
  const [pool] = await bandsox.pools.list()
  assert.equal(pool?.failure, null)
}

const COUNTER = 'i=0; while :; do i=$((i+1)); echo $i > /tmp/count.new; mv /tmp/count.new /tmp/count; sleep 0.05; done'

async function beginToCount(sandbox: Sandbox): Promise<void> {
  const { exitCode } = await sandbox
    .exec(`rm -f /tmp/count; setsid sh -c '${COUNTER.replaceAll("'", "'\\''")}' > /dev/null 2>&1 < /dev/null &`)
    .collect()
  assert.equal(exitCode, 0)
  await until(async () => (await countOf(sandbox)) > 0, 'the program to count')
}

const countOf = async (sandbox: Sandbox): Promise<number> =>
  Number((await sandbox.exec('cat /tmp/count || echo 0').collect()).stdout)

/** It runs, or does when it is used, and so do its programs. */
async function goesOn(sandbox: Sandbox): Promise<void> {
  const now = await countOf(sandbox)
  await until(async () => (await countOf(sandbox)) > now, 'its program to go on')
}

/** Of all but the folders of sandboxes, which are looked at one by one, and the database. */
function kibOf(folder: string): number {
  const argv = ['-sk', '--exclude=./vms', '--exclude=bandsox.db*', '.']
  return Number(/^\d+/.exec(execFileSync('du', argv, { cwd: folder, encoding: 'utf8' }))?.[0])
}
