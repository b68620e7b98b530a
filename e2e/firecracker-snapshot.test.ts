/**
 * Snapshots, forks, hibernation, templates and pools on Firecracker: with a stand-in everywhere, and with a real one where
 * `BANDSOX_FIRECRACKER` (and `BANDSOX_JAILER`) name it. A stand-in's guest is a process without rights on this host, so what only a guest
 * can show is shown by the real one alone.
 */
import assert from 'node:assert/strict'
import { existsSync, statSync } from 'node:fs'
import { mkdir, open, readFile, rename } from 'node:fs/promises'
import path from 'node:path'
import { describe, type TestContext, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import type { BandSoxError, Sandbox, SnapshotInfo } from 'bandsox'
import { Agent } from 'bandsox/internal/guest/agent.js'
import { socketLink } from 'bandsox/internal/link/socket-link.js'
import { LocalBandSox } from 'bandsox/internal/sandbox/local-bandsox.js'
import { SandboxStore } from 'bandsox/internal/store/sandbox-store.js'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { type FirecrackerHost, realHost, standInHost } from './support/firecracker.js'
import { boundedOrFull } from './support/scale.js'
import { namesIn, temporaryStorage, until } from './support/storage.js'

const isReal = (process.env['BANDSOX_FIRECRACKER'] ?? '') !== ''
const hasJailer = (process.env['BANDSOX_JAILER'] ?? '') !== ''
const isRoot = process.getuid?.() === 0
const jailers = isReal ? ([hasJailer ? 'on' : 'off'] as const) : (['off', 'on'] as const)
const SHAPE = { memoryMib: 128, diskMib: 64 } as const
const CLONES = boundedOrFull(6, 20)
/** All of them run at once in the end; on one emulated processor not all can begin so, within what a host waits. */
const AT_ONCE = process.env['E2E_SIZE'] === 'small' ? 4 : CLONES
/** Where nothing of the file system is in a disk that hardly anything was written to. */
const UNUSED_OFFSET = 50 * 1024 * 1024
const BOOT_TIMEOUT_MS = 300_000
const MAX_CLOCK_ERROR_MS = 50
/** So old a snapshot is when it is restored: on a real one, longer than a command waits for its host. */
const OLD_MS = isReal ? 25_000 : 500

const output = async (sandbox: Pick<Sandbox, 'exec'>, command: string): Promise<string> =>
  (await sandbox.exec(command).collect()).stdout.trim()

/** That it does what it is asked, over vsock. */
async function answers(sandbox: Sandbox): Promise<void> {
  assert.equal((await sandbox.files.stat('/')).type, 'directory')
}

/** What a guest was told of itself, the last time: the stand-in says it on its console. */
async function toldOf(sandbox: Sandbox): Promise<Record<string, string>> {
  let text = ''
  for await (const chunk of sandbox.logs()) text += Buffer.from(chunk).toString('latin1')
  const told = [...text.matchAll(/told: ([\w-]+) (\S+)/g)].map(([, name = '', value = '']) => [name, value])
  return Object.fromEntries(told) as Record<string, string>
}

/** Facts that no two machines may have in common. */
async function identityOf(sandbox: Sandbox): Promise<Record<string, string>> {
  if (!isReal) {
    const { entropy = '', hostname = '', 'machine-id': machineId = '' } = await toldOf(sandbox)
    return { entropy, hostname, machineId }
  }
  const [random = '', uuid = '', machineId = '', hostname = ''] = (
    await output(
      sandbox,
      'head -c 16 /dev/urandom | od -An -tx1 | tr -d " "; cat /proc/sys/kernel/random/uuid /etc/machine-id; hostname',
    )
  ).split('\n')
  return { random, uuid, machineId, hostname }
}

function assertPairwiseDifferent(identities: readonly Record<string, string>[]): void {
  for (const name of Object.keys(identities[0] ?? {})) {
    const values = identities.map((identity) => identity[name])
    assert.ok(
      values.every((value) => value !== ''),
      `${name} is known of each`,
    )
    assert.equal(new Set(values).size, values.length, `${name} differs: ${values.join(' ')}`)
  }
}

/** The host's view of its disk: only where the guest does not use it. */
async function markDisk(sandbox: Sandbox, mark: string): Promise<void> {
  await using disk = await open(path.join((await sandbox.info()).directory, 'overlay.ext4'), 'r+')
  await disk.write(mark.padEnd(64), UNUSED_OFFSET)
}

async function diskMark(sandbox: Sandbox): Promise<string> {
  await using disk = await open(path.join((await sandbox.info()).directory, 'overlay.ext4'), 'r')
  return (await disk.read(Buffer.alloc(64), 0, 64, UNUSED_OFFSET)).buffer.toString('latin1').trim()
}

/** Something that a state has in memory and on its disk, and that can be told from what comes later. */
async function leave(sandbox: Sandbox, mark: string): Promise<void> {
  if (!isReal) return await markDisk(sandbox, mark)
  await output(sandbox, `mkdir -p /root && echo ${mark} > /root/mark && echo ${mark} > /dev/shm/mark && sync`)
}

async function leftIn(sandbox: Sandbox): Promise<string> {
  if (!isReal) return await diskMark(sandbox)
  const [disk, memory] = (await output(sandbox, 'cat /root/mark /dev/shm/mark')).split('\n')
  assert.equal(disk, memory)
  return disk ?? ''
}

const COUNTER = 'i=0; while :; do i=$((i+1)); echo $i > /dev/shm/n.new; mv /dev/shm/n.new /dev/shm/n; sleep 0.05; done'
const count = async (sandbox: Sandbox): Promise<number> => Number(await output(sandbox, 'cat /dev/shm/n'))

async function clockErrorMs(sandbox: Sandbox): Promise<number> {
  let best = { roundTripMs: Number.POSITIVE_INFINITY, errorMs: 0 }
  for (let round = 0; round < 5; round++) {
    const before = Date.now()
    await sandbox.files.write('/dev/shm/now', 'x')
    const after = Date.now()
    const modifiedAt = Date.parse((await sandbox.files.stat('/dev/shm/now')).modifiedAt)
    if (after - before < best.roundTripMs)
      best = { roundTripMs: after - before, errorMs: modifiedAt - (before + after) / 2 }
  }
  return Math.max(0, Math.abs(best.errorMs) - best.roundTripMs / 2)
}

/** How long its kernel has been there, by its own clock. */
async function uptimeMs(sandbox: Sandbox): Promise<number> {
  const { vsock, directory } = await sandbox.info()
  assert.ok(vsock)
  const agent = new Agent([socketLink('vsock', path.join(directory, 'vsock.sock'), vsock.port)])
  try {
    return await agent.use(async (connection) => {
      connection.send({ type: 'ping' })
      return (await connection.receiveMessage('pong', { about: 'tell its time' })).uptimeMs
    })
  } finally {
    agent.close()
  }
}

async function flipByte(file: string, offset: number): Promise<void> {
  await using handle = await open(file, 'r+')
  const { buffer } = await handle.read(Buffer.alloc(1), 0, 1, offset)
  buffer[0] = (buffer[0] ?? 0) ^ 1
  await handle.write(buffer, 0, 1, offset)
}

const snapshotFolder = (storage: string, { id }: Pick<SnapshotInfo, 'id'>): string =>
  path.join(storage, 'snapshots', id)

for (const jailer of jailers)
  describe(`snapshots on ${isReal ? 'a real Firecracker' : 'the stand-in for Firecracker'}, ${jailer === 'on' ? 'jailed' : 'without a jail'}`, () => {
    interface Setting {
      bandsox: LocalBandSox
      storage: string
      create: (options?: { tracksChanges?: boolean }) => Promise<Sandbox>
      /** As another process would. */
      reopen: () => Promise<LocalBandSox>
    }
    /** Runs on a storage of its own, of which nothing may be left but what is deleted at the end; or skips and says why. */
    const onThis = (name: string, body: (setting: Setting, t: TestContext) => Promise<void>) =>
      test(name, async (t) => {
        if (jailer === 'on' && !isRoot) return t.skip('only root can make a jail')
        const found: FirecrackerHost | string = isReal ? await realHost(jailer) : await standInHost({ jailer })
        if (typeof found === 'string') return t.skip(found)
        await using host = found
        await using storage = await temporaryStorage()
        const { cliPath: _, ...config } = host.config(storage.folder) // without it no other process fills a pool
        {
          await using bandsox = await LocalBandSox.open({ ...config, templates: true })
          const create = (options = {}) =>
            bandsox.create('bandsox/base', { ...SHAPE, bootTimeoutMs: BOOT_TIMEOUT_MS, cold: true, ...options })
          await body({ bandsox, storage: storage.folder, create, reopen: () => LocalBandSox.open(config) }, t)
          for (const { id } of await bandsox.list()) await (await bandsox.get(id)).delete({ force: true })
          for (const { id } of (await bandsox.snapshots.list({ templates: true })).reverse())
            await bandsox.snapshots.delete(id)
        }
        assert.deepEqual(namesIn(path.join(storage.folder, 'snapshots')), [])
        await storage.assertNothingLeft()
      })

    onThis(
      'a snapshot has the disk and the memory of its moment, and goes on where it was',
      async ({ bandsox, create }, t) => {
        const sandbox = await create()
        await leave(sandbox, 'before')
        const job = isReal ? sandbox.exec(COUNTER) : undefined
        const ended = job?.wait() // whoever waits for it takes it up again after the pause
        if (isReal) await until(async () => (await count(sandbox)) > 3, 'the guest to count', 60_000)
        const counted = isReal ? await count(sandbox) : 0
        const snapshot = await sandbox.snapshot({ name: 'moment', metadata: { why: 'test' } })
        t.diagnostic(
          `pause ${snapshot.pauseMs} ms, ${JSON.stringify(snapshot.bytes)}, copies ${snapshot.restoreCopyBytes}`,
        )
        assert.deepEqual([snapshot.kind, snapshot.base, snapshot.isFrozen], ['full', null, true])
        assert.match(snapshot.vmm, /^firecracker 1\./)
        // Its disks are raw, so each restore copies what was written to this one.
        assert.ok(snapshot.restoreCopyBytes > 0 && snapshot.restoreCopyBytes <= SHAPE.diskMib * 1024 * 1024)
        await leave(sandbox, 'after')
        await delay(OLD_MS)
        const restored = await bandsox.snapshots.restore('moment', { bootTimeoutMs: BOOT_TIMEOUT_MS })
        t.diagnostic(`restored: ${JSON.stringify((await restored.info()).timings)}`)
        // Its clocks go on from its moment: what waits in it has waited no longer than it has run.
        const sinceThen = (await uptimeMs(sandbox)) - (await uptimeMs(restored))
        assert.ok(sinceThen >= OLD_MS, `${sinceThen} ms`)
        assert.equal(await leftIn(restored), 'before')
        assert.equal(await leftIn(sandbox), 'after')
        const [one, other] = [(await sandbox.info()).vsock?.port, (await restored.info()).vsock?.port]
        assert.ok(one !== undefined && other !== undefined && one !== other, 'each has a port of its own')
        assertPairwiseDifferent([await identityOf(sandbox), await identityOf(restored)])
        if (job === undefined) return
        const errorMs = await clockErrorMs(restored)
        t.diagnostic(`the clock is at least ${errorMs} ms off`)
        assert.ok(errorMs <= MAX_CLOCK_ERROR_MS, `${errorMs} ms`)
        for (const each of [sandbox, restored]) {
          const now = await count(each)
          assert.ok(now >= counted, `${now} after ${counted}`)
          const who = each === sandbox ? 'the original' : 'the clone'
          await until(async () => (await count(each)) > now, `${who} to count on`, 60_000)
        }
        job.kill('SIGKILL')
        assert.equal((await ended)?.signal, 'SIGKILL')
      },
    )

    onThis('a command outlives a pause that is longer than it waits for its host', async ({ create }, t) => {
      // The clocks of a KVM guest go on over a pause; those of the stand-in's do not.
      if (!isReal) return t.skip('a real Firecracker only: BANDSOX_FIRECRACKER')
      const sandbox = await create()
      const job = sandbox.exec(['sleep', '10000'])
      const ended = job.wait()
      await until(async () => (await sandbox.jobs()).length === 1, 'the command to run', 60_000)
      const before = await uptimeMs(sandbox)
      await sandbox.pause()
      await delay(OLD_MS)
      await sandbox.resume()
      assert.ok((await uptimeMs(sandbox)) - before >= OLD_MS, 'its clock stood still: this shows nothing')
      assert.deepEqual(
        (await sandbox.jobs()).map(({ hasEnded }) => hasEnded),
        [false],
      )
      job.kill('SIGTERM')
      assert.equal((await ended).signal, 'SIGTERM')
    })

    onThis(`${CLONES} clones at once are each a machine of its own`, async ({ bandsox, create }, t) => {
      const sandbox = await create()
      await leave(sandbox, 'shared')
      const { id, restoreCopyBytes } = await sandbox.snapshot()
      const startedAt = performance.now()
      const clones: Sandbox[] = []
      while (clones.length < CLONES) {
        const next = Array.from({ length: Math.min(AT_ONCE, CLONES - clones.length) }, () =>
          bandsox.snapshots.restore(id, { bootTimeoutMs: BOOT_TIMEOUT_MS }),
        )
        clones.push(...(await Promise.all(next)))
      }
      t.diagnostic(
        `${CLONES} clones in ${Math.round(performance.now() - startedAt)} ms, ${restoreCopyBytes} bytes copied for each`,
      )
      const identities = []
      for (const each of [sandbox, ...clones]) {
        await answers(each)
        assert.equal(await leftIn(each), 'shared')
        identities.push(await identityOf(each))
      }
      assertPairwiseDifferent(identities)
      const infos = await Promise.all(clones.map((clone) => clone.info()))
      assert.equal(new Set(infos.map(({ vsock }) => vsock?.port)).size, CLONES)
      assert.ok(infos.every(({ restoredFrom }) => restoredFrom === id))
      // They map its memory: it is not deleted away by mistake.
      await assert.rejects(bandsox.snapshots.delete(id), hasCode('snapshot-in-use', /mapped by running sandboxes/))
    })

    onThis('forks, whose children have the moment, and hibernates, which goes on with use', async ({ create }) => {
      const sandbox = await create()
      await leave(sandbox, 'parent')
      const children = await sandbox.fork({ count: 3, name: 'child', bootTimeoutMs: BOOT_TIMEOUT_MS })
      await leave(sandbox, 'later')
      for (const child of children) assert.equal(await leftIn(child), 'parent')
      assertPairwiseDifferent(await Promise.all([sandbox, ...children].map(identityOf)))
      assert.deepEqual(await Promise.all(children.map(async (each) => (await each.info()).name)), [
        'child-1',
        'child-2',
        'child-3',
      ])
      await sandbox.hibernate()
      assert.equal((await sandbox.info()).state.kind, 'hibernated')
      await answers(sandbox)
      assert.equal((await sandbox.info()).state.kind, 'running')
      assert.equal(await leftIn(sandbox), 'later')
    })

    onThis('sandboxes start from a template, and from a pool', async ({ bandsox }) => {
      const options = { ...SHAPE, bootTimeoutMs: BOOT_TIMEOUT_MS }
      assert.equal(await bandsox.makeTemplate('bandsox/base', options), true)
      assert.equal(await bandsox.makeTemplate('bandsox/base', options), false)
      const [template] = await bandsox.snapshots.list({ templates: true })
      const fromTemplate = await bandsox.create('bandsox/base', options)
      assert.equal((await fromTemplate.info()).restoredFrom, template?.id)
      await answers(fromTemplate)
      await bandsox.pools.set('bandsox/base', { ...SHAPE, size: 2, waits: true })
      const taken = await Promise.all([1, 2].map(() => bandsox.create('bandsox/base', options)))
      for (const each of taken) {
        assert.ok('pool' in ((await each.info()).timings ?? {}), 'it was taken from the pool')
        await answers(each)
      }
      assertPairwiseDifferent(await Promise.all([fromTemplate, ...taken].map(identityOf)))
      await bandsox.pools.remove('bandsox/base')
    })

    onThis(
      'snapshots of what has changed build on each other, and are restored as if they were whole',
      async (setting, t) => {
        const { bandsox, storage, create } = setting
        const sandbox = await create({ tracksChanges: true })
        await assert.rejects(sandbox.snapshot({ diff: true }), hasCode('wrong-state', /no snapshot/))
        await leave(sandbox, 'one')
        const full = await sandbox.snapshot({ name: 'full' })
        await leave(sandbox, 'two')
        const middle = await sandbox.snapshot({ name: 'middle', diff: true })
        await leave(sandbox, 'three')
        const last = await sandbox.snapshot({ name: 'last', diff: true })
        t.diagnostic(`memory: ${[full, middle, last].map(({ bytes }) => bytes.memory).join(', ')} bytes`)
        t.diagnostic(`pauses: ${[full, middle, last].map(({ pauseMs }) => pauseMs).join(', ')} ms`)
        assert.deepEqual([full.kind, full.base], ['full', null])
        assert.deepEqual([middle.kind, middle.base], ['diff', full.id])
        assert.deepEqual([last.kind, last.base], ['diff', middle.id])
        assert.ok(last.bytes.memory < full.bytes.memory)
        await assert.rejects(
          bandsox.snapshots.delete('middle', { force: true }),
          hasCode('snapshot-in-use', /last|snp_/),
        )
        const archive = path.join(storage, 'archive.tar')
        await assert.rejects(
          bandsox.snapshots.export('last', archive),
          hasCode('bad-request', /what has changed since/),
        )

        const clones = await Promise.all(
          [1, 2, 3].map(() =>
            bandsox.snapshots.restore('last', { tracksChanges: true, bootTimeoutMs: BOOT_TIMEOUT_MS }),
          ),
        )
        for (const clone of clones) assert.equal(await leftIn(clone), 'three')
        const whole = path.join(snapshotFolder(storage, last), 'whole', 'memory')
        const inodes = await Promise.all(
          clones.map(async (clone) => {
            const { directory, id } = await clone.info()
            const inside = jailer === 'on' ? `jail/firecracker/${id.replace('_', '-')}/root` : 'vmm'
            return statSync(path.join(directory, inside, 'memory')).ino
          }),
        )
        assert.deepEqual(new Set(inodes), new Set([statSync(whole).ino]), 'it was made whole once')
        const sizes = async () => (await bandsox.snapshots.get('last')).bytes.memory
        assert.ok((await sizes()) > last.bytes.memory, 'what it takes is told')
        // A state that is between others is as good.
        assert.equal(await leftIn(await bandsox.snapshots.restore('middle', { bootTimeoutMs: BOOT_TIMEOUT_MS })), 'two')

        // What was restored has its changes followed since then.
        const [clone] = clones
        assert.ok(clone)
        await leave(clone, 'four')
        const further = await clone.snapshot({ name: 'further', diff: true })
        assert.equal(further.base, last.id)
        assert.equal(
          await leftIn(await bandsox.snapshots.restore('further', { bootTimeoutMs: BOOT_TIMEOUT_MS })),
          'four',
        )
        for (const name of ['full', 'middle', 'last', 'further']) await bandsox.snapshots.verify(name)

        const merged = await bandsox.snapshots.merge('last')
        assert.deepEqual([merged.id, merged.kind, merged.base], [last.id, 'full', null])
        assert.ok(!existsSync(path.dirname(whole)), 'it is in its place')
        assert.deepEqual(await bandsox.snapshots.merge('last'), await bandsox.snapshots.get('last'))
        await bandsox.snapshots.delete('middle', { force: true })
        await bandsox.snapshots.delete('full')
        for (const name of ['last', 'further']) await bandsox.snapshots.verify(name)
        assert.equal(await leftIn(await bandsox.snapshots.restore('last', { bootTimeoutMs: BOOT_TIMEOUT_MS })), 'three')
        assert.equal(
          await leftIn(await bandsox.snapshots.restore('further', { bootTimeoutMs: BOOT_TIMEOUT_MS })),
          'four',
        )
        await bandsox.snapshots.export('last', archive)
        const imported = await bandsox.snapshots.import(archive, { name: 'imported' })
        assert.equal(
          await leftIn(await bandsox.snapshots.restore(imported.id, { bootTimeoutMs: BOOT_TIMEOUT_MS })),
          'three',
        )
      },
    )

    onThis(
      'a state that was saved for anything else begins the account of changes anew',
      async ({ bandsox, create }) => {
        const sandbox = await create({ tracksChanges: true })
        await sandbox.snapshot()
        const [child] = await sandbox.fork({ tracksChanges: true, bootTimeoutMs: BOOT_TIMEOUT_MS })
        assert.ok(child)
        for (const each of [sandbox, child]) {
          await assert.rejects(each.snapshot({ diff: true }), hasCode('wrong-state', /no snapshot/))
          const { id } = await each.snapshot()
          assert.equal((await each.snapshot({ diff: true })).base, id)
        }
        await sandbox.hibernate()
        await sandbox.resume()
        await assert.rejects(sandbox.snapshot({ diff: true }), hasCode('wrong-state', /no snapshot/))
        await sandbox.stop()
        await sandbox.start({ bootTimeoutMs: BOOT_TIMEOUT_MS })
        const { id } = await sandbox.snapshot()
        const diff = await sandbox.snapshot({ diff: true })
        assert.equal(diff.base, id)
        await bandsox.snapshots.delete(diff.id)
        await assert.rejects(sandbox.snapshot({ diff: true }), hasCode('wrong-state', /was deleted/))
      },
    )

    onThis('a merge that was cut off is completed by who comes next, and what one left is removed', async (setting) => {
      const { bandsox, storage, create, reopen } = setting
      const sandbox = await create({ tracksChanges: true })
      await sandbox.snapshot()
      await leave(sandbox, 'merged')
      const { id } = await sandbox.snapshot({ diff: true })
      await (await bandsox.snapshots.restore(id, { bootTimeoutMs: BOOT_TIMEOUT_MS })).delete({ force: true })
      const folder = snapshotFolder(storage, { id })
      // As far as a process came that was killed: it is on record, and one file of several has moved.
      const store = await SandboxStore.open(storage)
      const { manifestDigest, seals } = await store.snapshots.find(id)
      const read = async (name: string) => await readFile(path.join(folder, 'whole', name), 'utf8')
      const now = { manifestDigest: (await read('manifest.sha256')).trim(), seals }
      assert.ok(await store.snapshots.becomeWhole(id, manifestDigest, now))
      assert.equal(await store.snapshots.becomeWhole(id, manifestDigest, now), undefined, 'once')
      store.close()
      await rename(path.join(folder, 'whole', 'memory'), path.join(folder, 'memory'))
      const { kind, base } = await bandsox.snapshots.get(id)
      assert.deepEqual([kind, base, existsSync(path.join(folder, 'whole'))], ['full', null, false])
      await bandsox.snapshots.verify(id)
      const restored = await bandsox.snapshots.restore(id, { bootTimeoutMs: BOOT_TIMEOUT_MS })
      assert.equal(await leftIn(restored), 'merged')

      const left = path.join(storage, 'snapshots', `.whole-${id}`)
      await mkdir(left)
      await (await reopen())[Symbol.asyncDispose]()
      assert.ok(!existsSync(left))
    })

    onThis('one flipped byte anywhere in a chain is found', async ({ bandsox, storage, create }) => {
      const sandbox = await create({ tracksChanges: true })
      const [full, diff] = [await sandbox.snapshot(), await sandbox.snapshot({ diff: true })]
      await sandbox.delete({ force: true })
      const isDamaged = (file: string) => hasCode('snapshot-damaged', new RegExp(`^${file} of snapshot`))
      for (const [{ id }, file] of [
        [full, 'memory'],
        [full, 'devices'],
        [diff, 'memory'],
        [diff, 'devices'],
        [diff, 'overlay.ext4'],
        [diff, 'manifest.json'],
      ] as const) {
        const damaged = path.join(snapshotFolder(storage, { id }), file)
        const offset = Math.floor((await readFile(damaged)).findIndex((byte) => byte !== 0))
        await flipByte(damaged, offset)
        for (const found of [() => bandsox.snapshots.verify(diff.id), () => bandsox.snapshots.restore(diff.id)])
          await assert.rejects(found(), isDamaged(file))
        await flipByte(damaged, offset)
      }
      await (await bandsox.snapshots.restore(diff.id, { bootTimeoutMs: BOOT_TIMEOUT_MS })).delete({ force: true })
      const whole = path.join(snapshotFolder(storage, diff), 'whole')
      for (const file of ['memory', 'devices', 'manifest.json', 'manifest.sha256', 'seals.json']) {
        const offset = (await readFile(path.join(whole, file))).findIndex((byte) => byte !== 0)
        await flipByte(path.join(whole, file), offset)
        await assert.rejects(bandsox.snapshots.verify(diff.id), hasCode('snapshot-damaged'), file)
        // It can be made anew of what it was made of.
        const again = await bandsox.snapshots.restore(diff.id, { bootTimeoutMs: BOOT_TIMEOUT_MS })
        await answers(again)
        await again.delete({ force: true })
        await bandsox.snapshots.verify(diff.id)
      }
    })
  })

test('QEMU says that it does not follow changes before anything is started', async () => {
  await using storage = await temporaryStorage()
  await using host = await standInHost({ jailer: 'off' })
  await using bandsox = await LocalBandSox.open({ ...host.config(storage.folder), vmm: 'qemu' })
  const refused = (error: BandSoxError) =>
    error.code === 'host-unsupported' && /saves whole states only/.test(error.message)
  await assert.rejects(bandsox.create('bandsox/base', { ...SHAPE, tracksChanges: true }), refused)
  assert.deepEqual(await bandsox.list(), [])
})
