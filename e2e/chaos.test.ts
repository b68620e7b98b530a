/** Whatever is killed, and whenever: after the next command every sandbox works or is gone, and nothing is there that the store does not know. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { lstat, mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, openBandSox } from 'bandsox'
import { SandboxStore } from 'bandsox/internal/store/sandbox-store.js'
import { type Random, seededRandom } from 'bandsox/internal/testing/random.js'
import { startCli } from './support/command-line.js'
import { boundedOrFull } from './support/scale.js'
import { namesIn, processesIn, temporaryStorage, until, VMM_PROGRAM } from './support/storage.js'

const SEED = Number(process.env['BANDSOX_CHAOS_SEED'] ?? 20_261_124)
const kills = boundedOrFull(5, 200)
const rounds = boundedOrFull(1, 50)
const MIB = 1024 * 1024

/** What is going on when somebody is killed: the command, and the longest after which it is in its middle. */
const scenes = {
  create: { needs: 'none', withinMs: 3_000, args: () => ['create', 'bandsox/base', '--disk-size', '64'] },
  start: { needs: 'stopped', withinMs: 3_000, args: (id: string) => ['vm', 'start', id] },
  restart: { needs: 'running', withinMs: 3_500, args: (id: string) => ['vm', 'restart', id] },
  exec: {
    needs: 'running',
    withinMs: 900,
    args: (id: string) => [
      'exec',
      '--shell',
      id,
      'i=0; while [ $i -lt 300 ]; do echo $i; i=$((i+1)); sleep 0.01; done',
    ],
  },
  transfer: {
    needs: 'running',
    withinMs: 1_200,
    args: (id: string, file: string) => ['upload', id, file, '/root/large'],
  },
  stop: { needs: 'running', withinMs: 900, args: (id: string) => ['vm', 'stop', id] },
  delete: { needs: 'running', withinMs: 700, args: (id: string) => ['vm', 'delete', '--force', id] },
} as const

const victims = ['manager', 'shim', 'vmm'] as const
const programs = { shim: /^bandsox-shim/, vmm: VMM_PROGRAM } as const

test(`after ${kills} kills -9 of manager, shim or VMM at random moments every sandbox works or is gone (seed ${SEED})`, async (t) => {
  await using storage = await temporaryStorage()
  const local = await mkdtemp(path.join(tmpdir(), 'bandsox-chaos-'))
  t.after(() => rm(local, { recursive: true, force: true }))
  const large = path.join(local, 'large')
  const file = await open(large, 'w')
  await file.truncate(48 * MIB)
  await file.close()
  const random = seededRandom(SEED)
  for (let kill = 0; kill < kills; kill++) {
    // Each kind of scene comes up, whatever the count; who and when is left to chance.
    const names = Object.keys(scenes) as (keyof typeof scenes)[]
    const name = names[kill % names.length] ?? 'create'
    const victim = random.pick(victims)
    const afterMs = random.below(scenes[name].withinMs)
    const what = `kill ${kill}: ${victim} ${afterMs} ms into ${name}`
    await t.test(what, () => killIn(storage.folder, name, victim, afterMs, large, random))
  }
  const bandsox = await openBandSox({ storage: storage.folder })
  for (const { id } of await bandsox.list()) await (await bandsox.get(id)).delete({ force: true })
  await storage.assertNothingLeft()
})

async function killIn(
  storage: string,
  name: keyof typeof scenes,
  victim: (typeof victims)[number],
  afterMs: number,
  large: string,
  random: Random,
): Promise<void> {
  const scene = scenes[name]
  const id = scene.needs === 'none' ? '' : await sandboxThatIs(storage, scene.needs)
  const child = startCli(storage, scene.args(id, large))
  child.stdout?.resume()
  child.stderr?.resume()
  child.stdin?.end()
  const closed = once(child, 'close')
  await Promise.race([delay(afterMs, undefined, { ref: false }), closed])
  if (victim === 'manager') child.kill('SIGKILL')
  else {
    const process = processesIn(storage).find(({ program }) => programs[victim].test(program))
    if (process !== undefined) kill(process.pid)
    else child.kill('SIGKILL') // there is none yet, or no more
  }
  // A command whose VM is gone has to end by itself, and in time.
  const ended = await Promise.race([closed, delay(60_000, 'hangs', { ref: false })])
  assert.notEqual(ended, 'hangs', 'the command did not end by itself')
  await assertInOrder(storage)
  // One of them has to prove that it works; all would take long.
  const bandsox = await openBandSox({ storage })
  const infos = await bandsox.list()
  for (const { id: each, state } of infos) {
    const sandbox = await bandsox.get(each)
    if (state.kind === 'running')
      assert.equal(
        (await sandbox.exec(['echo', 'well']).collect()).stdout,
        'well\n',
        `${each} is running, and does not work`,
      )
    else if (random.below(2) === 0) {
      await sandbox.start()
      assert.equal(
        (await sandbox.exec(['echo', 'again']).collect()).stdout,
        'again\n',
        `${each} was started, and does not work`,
      )
    }
  }
}

/** One that is there, or a new one. */
async function sandboxThatIs(storage: string, wanted: 'running' | 'stopped'): Promise<string> {
  const bandsox = await openBandSox({ storage })
  const [info] = await bandsox.list()
  const sandbox =
    info === undefined ? await bandsox.create('bandsox/base', { diskMib: 64 }) : await bandsox.get(info.id)
  const { state } = await sandbox.info()
  if (wanted === 'running' && state.kind !== 'running') await sandbox.start()
  if (wanted === 'stopped' && state.kind === 'running') await sandbox.stop()
  return sandbox.id
}

function kill(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL')
  } catch {
    // It has just ended by itself.
  }
}

/** After one reconcile: processes, folders, sockets, mounts, rows and numbers agree. */
async function assertInOrder(storage: string): Promise<void> {
  const bandsox = await openBandSox({ storage })
  const infos = await bandsox.list()
  const vms = path.join(storage, 'vms')
  const live = infos.filter(({ state }) => state.kind === 'running')
  const isKnown = (cwd: string) => live.some(({ id }) => cwd === path.join(vms, id))
  // A shim that was told to end its VM may need a moment for it.
  await until(
    () => processesIn(storage).every(({ cwd }) => isKnown(cwd)),
    'processes of sandboxes that do not run to end',
    15_000,
  ).catch(() => undefined)
  assert.deepEqual(
    processesIn(storage).filter(({ cwd }) => !isKnown(cwd)),
    [],
    'processes that no running sandbox has',
  )
  assert.deepEqual(namesIn(vms), infos.map(({ id }) => id).sort(), 'folders and records differ')
  for (const { id, state, operation, vsock } of infos) {
    assert.ok(['running', 'stopped', 'failed'].includes(state.kind), `${id} is ${state.kind}`)
    assert.equal(operation, null, `${id} is still at ${operation?.name}`)
    assert.equal(vsock !== null, state.kind === 'running', `${id} is ${state.kind}, and its CID is ${vsock?.cid}`)
    if (state.kind !== 'running') await assertAtRest(path.join(vms, id))
  }
  const known = /^(boot|images|disks|vms|bandsox\.db(-wal|-shm|\.reserve)?)$/
  assert.deepEqual(
    namesIn(storage).filter((name) => !known.test(name)),
    [],
    'files that nobody owns',
  )
  assert.equal(readFileSync('/proc/mounts', 'utf8').includes(storage), false, 'a mount was left')
  const store = await SandboxStore.open(storage)
  const { cids, ports } = await store.numbers()
  store.close()
  assert.deepEqual(ports.used_ports.length, live.length, 'ports of nobody')
  assert.equal(cids.next_cid - 3 - cids.free_cids.length, live.length, 'a CID was lost')
}

async function assertAtRest(directory: string): Promise<void> {
  for (const name of [
    ...namesIn(directory),
    ...namesIn(path.join(directory, 'vsock')).map((each) => `vsock/${each}`),
  ]) {
    const entry = await lstat(path.join(directory, name))
    assert.ok(!entry.isSocket() && !entry.isFIFO(), `${name} was left in ${directory}`)
    assert.doesNotMatch(name, /\.tmp$/, `${name} was left in ${directory}`)
  }
}

test(`${rounds} rounds of create and delete leave nothing, and use the same numbers again`, async () => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  for (let round = 0; round < rounds; round++) {
    const sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
    const { vsock } = await sandbox.info()
    if (vsock?.backend === 'daemon') assert.equal(vsock.cid, 3)
    assert.equal(vsock?.port, 9000 + (round % 1000))
    await sandbox.delete({ force: true })
    await storage.assertNothingLeft()
  }
})

test('operations on one sandbox at the same time, by several processes, are done one by one or refused', async () => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  await using sandbox = await bandsox.create('bandsox/base', { diskMib: 64, name: 'one' })
  const commands = [
    ['vm', 'stop', 'one'],
    ['vm', 'restart', 'one'],
    ['vm', 'pause', 'one'],
    ['vm', 'stop', 'one'],
  ]
  const ends = await Promise.all(
    commands.map(async (args) => {
      const child = startCli(storage.folder, args)
      let stderr = ''
      child.stderr?.on('data', (chunk) => (stderr += String(chunk)))
      child.stdout?.resume()
      const [status] = (await once(child, 'close')) as [number]
      return { status, stderr }
    }),
  )
  for (const { status, stderr } of ends) {
    assert.ok(status === 0 || status === 75, stderr)
    if (status === 75)
      assert.match(stderr, /is busy: \w+ is in progress \(process \d+\)|cannot \w+ sandbox .*: it is \w+/)
  }
  assert.ok(ends.some(({ status }) => status === 0))
  const { state, operation } = await sandbox.info()
  assert.equal(operation, null)
  if (state.kind === 'paused') await sandbox.resume()
  else if (state.kind !== 'running') await sandbox.start()
  assert.equal((await sandbox.exec(['echo', 'well']).collect()).stdout, 'well\n')
  const busy = await Promise.allSettled([sandbox.stop(), sandbox.pause(), sandbox.delete({ force: true })])
  const refused = busy.filter((each) => each.status === 'rejected')
  for (const { reason } of refused)
    assert.ok(
      reason instanceof BandSoxError && ['busy', 'wrong-state', 'not-found'].includes(reason.code),
      String(reason),
    )
  assert.ok(refused.length < busy.length)
})
