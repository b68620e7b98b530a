/** What a sandbox may take of the host, and what becomes of it where the host has no more. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { appendFileSync, readFileSync, rmSync, statfsSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { BandSoxError, openBandSox, type Sandbox } from 'bandsox'
import { readRun } from 'bandsox/internal/process/shim.js'
import { attachMachine } from 'bandsox/internal/vmm/qemu/machine.js'
import { withQmp } from 'bandsox/internal/vmm/qemu/qmp.js'
import { attachTo } from './support/machine.js'
import { onlyOnQemu, storageOfItsOwnSize, temporaryStorage, until } from './support/storage.js'

const MIB = 1024 * 1024
const shim = fileURLToPath(new URL('../../packages/bandsox/native/bandsox-shim', import.meta.url))
const isRoot = process.getuid?.() === 0

const statusOf = async (directory: string) => (await readRun(directory)).status

const qmpIn = <T>(directory: string, command: string) =>
  withQmp(path.join(directory, 'qmp.sock'), (qmp) => qmp.execute(command) as Promise<T>)

test('what a machine does is in machine.json, whoever told it to', {
  skip: onlyOnQemu('it is told by QMP here'),
}, async () => {
  await using storage = await temporaryStorage()
  await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
  const { directory } = await sandbox.info()
  const became = (status: string) => until(async () => (await statusOf(directory))?.status === status, status)
  await became('running')
  await qmpIn(directory, 'stop')
  await became('paused')
  await qmpIn(directory, 'cont')
  await became('running')
  const { run } = await readRun(directory)
  assert.ok(run)
  process.kill(run.shim.pid, 'SIGKILL')
  await until(async () => !(await readRun(directory)).shimAlive, 'the shim to die')
  await qmpIn(directory, 'stop')
  assert.equal((await statusOf(directory))?.status, 'running', 'nobody is there to hear of it')
  const machine = await attachMachine(shim, directory)
  await became('paused')
  await machine.resume()
  await became('running')
  machine.close()
  await assert.rejects(sandbox.exec('echo c > /proc/sysrq-trigger; sleep 60').wait())
  await until(async () => (await readRun(directory)).exit !== undefined, 'the end')
  const { exit, status } = await readRun(directory)
  assert.equal(exit?.shutdown, 'guest-reset')
  assert.equal(status, undefined)
})

test('a full disk of the host pauses the machine, and with room it goes on and has lost nothing', {
  skip:
    onlyOnQemu('its guest hears of a full disk as of a broken one') ||
    (!isRoot && 'only root can mount a small file system'),
}, async () => {
  const room = 12 * MIB
  await using storage = await storageOfItsOwnSize(192)
  await using bandsox = await openBandSox({ storage: storage.folder })
  await using sandbox = await bandsox.create('bandsox/base')
  const { directory } = await sandbox.info()
  const { bavail, bsize } = statfsSync(storage.folder)
  const filler = path.join(storage.folder, 'filler')
  writeFileSync(filler, Buffer.alloc(bavail * bsize - room))
  const writing = sandbox
    .exec('head -c 24000000 /dev/urandom | tee /root/data | sha256sum && sync /root/data && echo synced')
    .collect()
  const data = randomBytes(12_000_000)
  const uploading = sandbox.files.write('/root/upload', data)
  await until(async () => (await statusOf(directory))?.status === 'io-error', 'the disk to be full', 60_000)
  assert.match((await statusOf(directory))?.reason ?? '', /^write on disk overlay failed: no space left on the host$/)
  // Everybody is told, also by a disk that has no room for telling it.
  fill(filler)
  const { state } = await sandbox.info()
  assert.deepEqual(state, { kind: 'paused', since: state.since, reason: "the host's disk is full" })
  const events = []
  for await (const { kind, reason } of bandsox.events()) events.push([kind, reason])
  assert.deepEqual(events.at(-1), ['paused', "the host's disk is full"])
  await assert.rejects(
    sandbox.exec(['true']).wait(),
    /cannot exec sandbox .*: it is paused \(the host's disk is full\)/,
  )
  await assert.rejects(sandbox.resume(), (error) => error instanceof BandSoxError && error.code === 'no-space')
  rmSync(filler)
  await sandbox.resume()
  const written = await writing
  assert.equal(written.exitCode, 0)
  assert.match(written.stdout, /\nsynced\n$/)
  await uploading
  const read = await sandbox.exec('echo 3 > /proc/sys/vm/drop_caches; sha256sum < /root/data; dmesg').collect()
  assert.equal(read.stdout.split('\n')[0], written.stdout.split('\n')[0])
  assert.ok(data.equals(await sandbox.files.read('/root/upload')), 'the upload is whole')
  assert.doesNotMatch(read.stdout, /I\/O error|EXT4-fs error/)
  assert.equal((await statusOf(directory))?.status, 'running')
})

/** Writes until there is no room at all. */
function fill(file: string): void {
  try {
    for (;;) appendFileSync(file, Buffer.alloc(4096))
  } catch (error) {
    assert.equal((error as NodeJS.ErrnoException).code, 'ENOSPC')
  }
}

const unlimited = { diskBytesPerSecond: null, diskOperationsPerSecond: null, cpus: null }

/** Seconds that the guest takes to write to its disk. */
async function secondsToWrite(sandbox: Sandbox, mib: number): Promise<number> {
  const before = performance.now()
  const command = `dd if=/dev/shm/data of=/root/copy bs=1M count=${mib} conv=fsync`
  const { exitCode, stderr } = await sandbox.exec(command).collect()
  assert.equal(exitCode, 0, stderr)
  return (performance.now() - before) / 1000
}

interface BlockDevice {
  inserted: { bps: number; bps_max: number; iops: number; iops_max: number; group?: string }
}

test('both disks are limited together from the start, and a limit changes while the machine runs', {
  skip: onlyOnQemu('QMP is asked for the limits here'),
}, async () => {
  await using storage = await temporaryStorage()
  await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base', {
    memoryMib: 384,
  })
  const { directory } = await sandbox.info()
  const limits = async () =>
    (await qmpIn<BlockDevice[]>(directory, 'query-block')).map(
      ({ inserted: { bps, bps_max, iops, iops_max, group } }) =>
        group === undefined ? 'none' : [bps, bps_max, iops, iops_max, group].join(),
    )
  const atFirst = `${200 * MIB},${200 * MIB},5000,5000,disks`
  assert.deepEqual(await limits(), [atFirst, atFirst])
  const machine = await attachMachine('', directory)
  try {
    await sandbox.exec(`head -c ${32 * MIB} /dev/urandom > /dev/shm/data`).wait()
    await machine.setLimits(unlimited)
    assert.deepEqual(await limits(), ['none', 'none'])
    const free = await secondsToWrite(sandbox, 32)
    await machine.setLimits({ ...unlimited, diskBytesPerSecond: 10 * MIB })
    const limited = await secondsToWrite(sandbox, 32)
    // The first 10 MiB may come at once.
    assert.ok(limited > 2, `32 MiB at 10 MiB/s took ${limited} s, without a limit ${free} s`)
    await machine.setLimits({ ...unlimited, diskOperationsPerSecond: 5000 })
    const again = await secondsToWrite(sandbox, 32)
    assert.ok(again < limited && free < limited, `${free} s without a limit, ${limited} s with, then ${again} s`)
    await assert.rejects(machine.setLimits({ ...unlimited, cpus: 0.5 }), /no control group/)
  } finally {
    machine.close()
  }
})

test('memory is taken from a guest and given back, and what a guest has freed goes to the host', async () => {
  await using storage = await temporaryStorage()
  await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base', {
    memoryMib: 384,
  })
  const { directory, vmmPid } = await sandbox.info()
  await using machine = await attachTo(directory)
  const available = async () =>
    Number(/MemAvailable: +(\d+)/.exec((await sandbox.exec(['cat', '/proc/meminfo']).collect()).stdout)?.[1]) / 1024
  const before = await available()
  assert.equal(await machine.setMemory(256), 256)
  assert.ok(Math.abs(before - (await available()) - 128) < 40)
  assert.equal(await machine.setMemory(384), 384)
  assert.ok(Math.abs(before - (await available())) < 40)
  const hostGives = () => Number(/^Rss: +(\d+)/m.exec(readFileSync(`/proc/${vmmPid}/smaps_rollup`, 'utf8'))?.[1]) / 1024
  await sandbox.exec('head -c 150000000 /dev/zero > /dev/shm/data').wait()
  const full = hostGives()
  await sandbox.exec('rm /dev/shm/data').wait()
  await until(() => hostGives() < full - 60, 'the host to have its memory back', 60_000)
})
