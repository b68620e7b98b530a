/**
 * What the Firecracker driver promises, the same for a stand-in that runs everywhere and for a real Firecracker, in a jail and without:
 * the latter where `BANDSOX_FIRECRACKER` and `BANDSOX_JAILER` name them.
 */
import assert from 'node:assert/strict'
import { mkdir, readFile, rm, stat } from 'node:fs/promises'
import path from 'node:path'
import { describe, type TestContext, test } from 'node:test'
import { BandSoxError, type Sandbox } from 'bandsox'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { FirecrackerApi } from 'bandsox/internal/vmm/firecracker/api/client.js'
import type { MachineSpec } from 'bandsox/internal/vmm/vmm.js'
import {
  agentAt,
  driverOn,
  type FirecrackerHost,
  machineBeside,
  openOn,
  realHost,
  standInHost,
} from './support/firecracker.js'
import { randomBytes } from './support/random.js'
import { boundedOrFull } from './support/scale.js'
import { namesIn, processesIn, temporaryStorage, until, VMM_PROGRAM } from './support/storage.js'

const isRoot = process.getuid?.() === 0
const FILE_BYTES = process.env['E2E_SIZE'] === 'small' ? 4 * 1024 * 1024 : 8 * 1024 * 1024
const SERIAL_BYTES = 128 * 1024
const CLONES = boundedOrFull(5, 20)
const PAUSES = boundedOrFull(3, 20)

/** Where a file may be put that any guest has room for; the stand-in's guest is this host, or the jail. */
const guestFile = (host: FirecrackerHost, jailer: string, name: string): string =>
  host.isReal ? `/root/${name}` : jailer === 'on' ? `/${name}` : `/tmp/bandsox-stand-in-${process.pid}-${name}`

/** A command over vsock; the stand-in's guest is a process without rights, which can start none as anybody else: there a file. */
async function answers(host: FirecrackerHost, guest: Pick<Sandbox, 'exec' | 'files'>): Promise<void> {
  if (!host.isReal) {
    assert.equal((await guest.files.stat('/')).type, 'directory')
    return
  }
  // On a host that is busy with twenty others, the first answer may come too late for the patience with vsock.
  await until(
    async () => {
      const { stdout, link } = await guest.exec(['echo', 'hello']).collect()
      assert.equal(stdout, 'hello\n')
      return link === 'vsock'
    },
    'an answer over vsock',
    60_000,
  )
}

const onHost = { isReal: [false, true], jailer: ['off', 'on'] } as const

for (const isReal of onHost.isReal)
  for (const jailer of onHost.jailer)
    describe(`${isReal ? 'a real Firecracker' : 'the stand-in for Firecracker'}, ${jailer === 'on' ? 'jailed' : 'without a jail'}`, () => {
      /** Runs with a host, or skips and says why. */
      const onThis = (name: string, body: (host: FirecrackerHost, t: TestContext) => Promise<void>) =>
        test(name, async (t) => {
          if (jailer === 'on' && !isRoot) return t.skip('only root can make a jail')
          const found = isReal ? await realHost(jailer) : await standInHost({ jailer })
          if (typeof found === 'string') return t.skip(found)
          await using host = found
          await body(host, t)
        })
      const file = (host: FirecrackerHost, name: string) => guestFile(host, jailer, name)

      onThis('boots, takes commands and files over both links, pauses, and ends with nothing left', async (host) => {
        await using storage = await temporaryStorage()
        await using bandsox = await openOn(host, storage.folder)
        const sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
        const { vmm, accelerator, vsock, directory } = await sandbox.info()
        assert.match(vmm, /^firecracker 1\.\d+/)
        assert.deepEqual([accelerator, vsock?.backend], ['kvm', 'vmm'])
        const isJailed = namesIn(directory).includes('jail')
        assert.equal(isJailed, jailer === 'on')
        await answers(host, sandbox)
        for (const [link, bytes] of [
          ['vsock', FILE_BYTES],
          ['serial', SERIAL_BYTES],
        ] as const) {
          const content = randomBytes(bytes, 7)
          const up = await sandbox.files.write(file(host, link), content, { link })
          assert.deepEqual([up.link, up.sizeBytes], [link, bytes])
          assert.ok((await sandbox.files.read(file(host, link))).equals(content))
        }
        await sandbox.pause()
        assert.equal((await sandbox.info()).state.kind, 'paused')
        await sandbox.resume()
        await answers(host, sandbox)
        await sandbox.stop()
        assert.equal((await sandbox.info()).state.kind, 'stopped')
        for (const gone of ['jail', 'vmm', 'vsock.sock', 'serial.sock', 'console.in'])
          assert.ok(!namesIn(directory).includes(gone), gone)
        await sandbox.start()
        await answers(host, sandbox)
        await sandbox.delete({ force: true })
        await storage.assertNothingLeft()
        for (const link of ['vsock', 'serial']) if (!isReal && jailer === 'off') await rm(file(host, link))
      })

      onThis(
        'runs as a user of its own, first in its PID namespace, and sees no file that is not its own',
        async (host, t) => {
          if (!isRoot) return t.skip('only root gives machines users of their own')
          await using storage = await temporaryStorage()
          await using bandsox = await openOn(host, storage.folder)
          await using sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
          const { vmmPid, id } = await sandbox.info()
          const status = await readFile(`/proc/${vmmPid}/status`, 'utf8')
          const field = (name: string) => new RegExp(`^${name}:\\s*(.*)$`, 'm').exec(status)?.[1]?.split(/\s+/) ?? []
          assert.equal(field('Uid').join(), Array(4).fill('1900000000').join())
          assert.equal(field('Gid').join(), Array(4).fill('1900000000').join())
          assert.deepEqual(field('NSpid').slice(1), ['1'])
          assert.deepEqual(field('CapEff'), ['0000000000000000'])
          assert.deepEqual(field('NoNewPrivs'), ['1'])
          const [found] = processesIn(storage.folder).filter(({ pid }) => pid === vmmPid)
          assert.ok(found)
          const folder = jailer === 'on' ? `${id}/jail/firecracker/${id.replace('_', '-')}/root` : `${id}/vmm`
          assert.equal(found.cwd, path.join(storage.folder, 'vms', folder))
        },
      )

      onThis('takes limits and gives memory and metrics while it runs', async (host) => {
        await using storage = await temporaryStorage()
        await using bandsox = await openOn(host, storage.folder)
        await using sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
        await sandbox.update({ limits: { diskBytesPerSecond: 1024 * 1024, diskOperationsPerSecond: null } })
        const { limits, directory } = await sandbox.info()
        assert.deepEqual([limits.diskBytesPerSecond, limits.diskOperationsPerSecond], [1024 * 1024, null])
        const { monitor } = JSON.parse(await readFile(`${directory}/shim.json`, 'utf8')) as {
          monitor: { socket: string }
        }
        await using api = new FirecrackerApi(path.join(directory, monitor.socket))
        const limited = async () =>
          (await api.vmConfig()).drives.map((drive) => drive.rate_limiter?.bandwidth?.size ?? 0)
        assert.deepEqual(await limited(), [1024 * 1024, 1024 * 1024])
        await sandbox.update({ limits: { diskBytesPerSecond: null } })
        assert.deepEqual(await limited(), [0, 0])
        await sandbox.update({ memoryMib: 200 })
        assert.equal((await api.balloon()).amount_mib, 56)
        const [{ counters: first, log }, { counters: second }] = [await sandbox.metrics(), await sandbox.metrics()]
        assert.ok(Number(first?.['utc_timestamp_ms']) < Number(second?.['utc_timestamp_ms']))
        assert.ok(Array.isArray(log))
      })

      onThis(
        `saves its state, and ${CLONES} machines are loaded from it at once, each with its own vsock`,
        async (host) => {
          await using storage = await temporaryStorage()
          await using bandsox = await openOn(host, storage.folder)
          const sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
          await answers(host, sandbox)
          const { directory, id, vsock } = await sandbox.info()
          assert.ok(vsock)
          const { vmm, close } = await driverOn(host, storage.folder)
          const folder = path.join(storage.folder, 'state')
          await mkdir(folder, { mode: 0o700 })
          await sandbox.pause()
          const original = await vmm.attach(directory)
          const state = await original.saveState(folder, 'full')
          // The disk is the caller's to copy, while nothing writes to it.
          const specs: MachineSpec[] = []
          for (let index = 0; index < CLONES; index++)
            specs.push(await machineBeside({ directory, id }, { cid: 100 + index, port: vsock.port }))
          await sandbox.resume()
          const clones = await Promise.all(specs.map((spec) => vmm.load(spec, state)))
          const agents = clones.map(({ facts }, index) => {
            const spec = specs[index]
            assert.ok(spec)
            return agentAt(vmm, spec, facts)
          })
          // All go on at once: until each has had its turn, none answers as quickly as one alone does, which is waited for as after a boot.
          await Promise.all(agents.map((agent) => agent.waitUntilReady({ timeoutMs: 120_000 })))
          for (const [index, agent] of agents.entries()) {
            await answers(host, agent)
            const content = randomBytes(256 * 1024, index)
            const name = file(host, `clone-${index}`)
            assert.equal((await agent.files.write(name, content, { link: 'vsock' })).link, 'vsock')
            assert.ok((await agent.files.read(name)).equals(content))
            if (!isReal && jailer === 'off') await rm(name)
            agent.close()
          }
          await answers(host, sandbox)
          for (const [index, { machine }] of clones.entries()) {
            await machine.signal('SIGKILL')
            assert.ok(await machine.exitedWithin(10_000))
            machine.close()
            const spec = specs[index]
            assert.ok(spec)
            assert.deepEqual(
              namesIn(spec.directory).filter((name) => /^(jail|vmm)$|\.sock$/.test(name)),
              [],
            )
            await rm(spec.directory, { recursive: true })
          }
          original.close()
          close()
          await sandbox.delete({ force: true })
          await storage.assertNothingLeft()
        },
      )

      onThis('saves what has changed since, and does not take a file that is none for a state', async (host) => {
        await using storage = await temporaryStorage()
        await using bandsox = await openOn(host, storage.folder)
        const sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
        const { directory, id, vsock } = await sandbox.info()
        assert.ok(vsock)
        const { vmm, close } = await driverOn(host, storage.folder)
        const folders = ['full', 'diff'].map((name) => path.join(storage.folder, name))
        for (const folder of folders) await mkdir(folder, { mode: 0o700 })
        const [full = '', diff = ''] = folders
        await sandbox.pause()
        const original = await vmm.attach(directory)
        const state = await original.saveState(full, 'full')
        const spec = await machineBeside({ directory, id }, { cid: 100, port: vsock.port })
        await sandbox.resume()
        const { machine } = await vmm.load(spec, state, { trackDirtyPages: true })
        await machine.pause()
        const changed = await machine.saveState(diff, 'diff')
        const [whole, part] = [await stat(state.memory), await stat(changed.memory)]
        assert.equal(part.size, whole.size)
        assert.ok(part.blocks <= whole.blocks)
        await assert.rejects(machine.saveState(path.join(storage.folder, 'none'), 'full'), hasCode('file-not-found'))
        await assert.rejects(machine.saveState(diff, 'full'), hasCode('bad-request', /there is one in it already/))
        const merged = path.join(storage.folder, 'merged')
        await mkdir(merged, { mode: 0o700 })
        const later = await vmm.mergeState(state, [changed], merged)
        // Its disk is as it was when the changes were saved: nothing has run since.
        const next = await machineBeside(
          { directory, id },
          { cid: 101, port: vsock.port },
          path.join(spec.directory, 'overlay.ext4'),
        )
        const again = await vmm.load(next, later)
        const agent = agentAt(vmm, next, again.facts)
        await agent.waitUntilReady({ timeoutMs: 120_000 })
        await answers(host, agent)
        agent.close()
        await again.machine.signal('SIGKILL')
        assert.ok(await again.machine.exitedWithin(10_000))
        again.machine.close()
        await rm(next.directory, { recursive: true })
        machine.close()
        const clone = await vmm.attach(spec.directory)
        await clone.signal('SIGKILL')
        assert.ok(await clone.exitedWithin(10_000))
        clone.close()
        original.close()
        close()
        await rm(spec.directory, { recursive: true })
        await sandbox.delete({ force: true })
        await storage.assertNothingLeft()
      })

      onThis(
        `is paused and resumed ${PAUSES} times by the driver alone, and is whole over vsock after each`,
        async (host) => {
          await using storage = await temporaryStorage()
          await using bandsox = await openOn(host, storage.folder)
          await using sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
          await answers(host, sandbox)
          const { vmm, close } = await driverOn(host, storage.folder)
          const machine = await vmm.attach((await sandbox.info()).directory)
          const name = file(host, 'paused')
          for (let round = 0; round < PAUSES; round++) {
            await machine.pause()
            await machine.resume()
            await answers(host, sandbox)
            const content = randomBytes(256 * 1024, round)
            assert.equal((await sandbox.files.write(name, content, { link: 'vsock' })).link, 'vsock')
            assert.ok((await sandbox.files.read(name)).equals(content))
          }
          machine.close()
          close()
          if (!host.isReal && jailer === 'off') await rm(name)
        },
      )

      onThis('explains what it cannot load in its own words, and leaves nothing', async (host) => {
        await using storage = await temporaryStorage()
        await using bandsox = await openOn(host, storage.folder)
        const sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
        const { directory, id } = await sandbox.info()
        const { vmm, close } = await driverOn(host, storage.folder)
        const spec = await machineBeside({ directory, id }, { cid: 100, port: 9000 })
        const noState = path.join(directory, 'kernel')
        await assert.rejects(
          vmm.load(spec, { devices: noState, memory: noState }),
          (error: unknown) =>
            error instanceof BandSoxError && error.code === 'vmm-control' && /Load snapshot error/.test(error.message),
        )
        assert.deepEqual(
          namesIn(spec.directory).filter((name) => /^(jail|vmm)$|\.sock$/.test(name)),
          [],
        )
        await rm(spec.directory, { recursive: true })
        close()
        await sandbox.delete({ force: true })
        await storage.assertNothingLeft()
      })

      onThis('that is killed, or whose shim is, is found out or found again', async (host) => {
        await using storage = await temporaryStorage()
        await using bandsox = await openOn(host, storage.folder)
        const sandbox = await bandsox.create('bandsox/base', { diskMib: 64 })
        const pidOf = (program: RegExp) =>
          processesIn(storage.folder).find((each) => program.test(each.program))?.pid ?? 0
        const vmmPid = pidOf(VMM_PROGRAM)
        process.kill(pidOf(/^bandsox-shim/), 'SIGKILL')
        await answers(host, sandbox)
        assert.equal(pidOf(VMM_PROGRAM), vmmPid)
        process.kill(vmmPid, 'SIGKILL')
        await until(() => processesIn(storage.folder).length === 0, 'the shim to follow')
        const { state, directory } = await sandbox.info()
        assert.equal(state.kind, 'failed')
        assert.deepEqual(
          namesIn(directory).filter((name) => /^(jail|vmm)$|\.sock$/.test(name)),
          [],
        )
        await sandbox.delete()
        await storage.assertNothingLeft()
      })
    })
