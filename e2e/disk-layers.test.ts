/** A writable disk of layers over one that is only read, on a real machine: what it shows, and what it writes. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { chmodSync, chownSync, linkSync, openSync, readFileSync, statSync, writeFileSync, writeSync } from 'node:fs'
import path from 'node:path'
import { test } from 'node:test'
import { openBandSox } from 'bandsox'
import { digestFile } from 'bandsox/internal/artifact/recorded-file.js'
import { readRun } from 'bandsox/internal/process/shim.js'
import { withQmp } from 'bandsox/internal/vmm/qemu/qmp.js'
import type { Vmm } from 'bandsox/internal/vmm/vmm.js'
import { bareSpec, machineFolder, startBare, vmmOf } from './support/bare-machine.js'
import { onlyOnQemu, type TestStorage, temporaryStorage } from './support/storage.js'

const isRoot = process.getuid?.() === 0
const SHARED = ['kernel', 'initramfs', 'root.squashfs', 'overlay.ext4']
const DISK_MIB = 64

/** A folder with the files of a machine that has written to its disk and was stopped; all of them are read only. */
async function writtenBase(storage: TestStorage): Promise<string> {
  const bandsox = await openBandSox({ storage: storage.folder })
  const sandbox = await bandsox.create('bandsox/base', { diskMib: DISK_MIB })
  await sandbox.exec('mkdir /data; echo base > /data/base; echo base > /data/changed; echo base > /data/removed').wait()
  const { directory } = await sandbox.info()
  await sandbox.stop()
  const base = machineFolder(storage, 'base000000')
  for (const name of SHARED) execFileSync('cp', ['--sparse=always', path.join(directory, name), base])
  chmodSync(path.join(base, 'overlay.ext4'), 0o444)
  await sandbox.delete()
  return base
}

/** Hard links to what is shared, and layers: those of others, which are only read, and one of its own. */
async function layOut(
  vmm: Vmm,
  storage: TestStorage,
  name: string,
  { base, lower }: { base: string; lower: string[] },
): Promise<{ directory: string; layers: string[] }> {
  const directory = machineFolder(storage, name)
  for (const file of SHARED) linkSync(path.join(base, file), path.join(directory, file))
  const layers = lower.map((_, index) => `layer-${index}.qcow2`)
  for (const [index, file] of lower.entries()) linkSync(file, path.join(directory, layers[index] ?? ''))
  const top = path.join(directory, 'top.qcow2')
  await vmm.makeLayer(top, statSync(path.join(base, 'overlay.ext4')).size)
  const { uid } = bareSpec({ directory })
  if (isRoot) chownSync(top, uid, uid)
  return { directory, layers: [...layers, 'top.qcow2'] }
}

/** As a snapshot has it: nobody's to write. */
function freeze(file: string): string {
  if (isRoot) chownSync(file, 0, 0)
  chmodSync(file, 0o444)
  return file
}

const digests = (files: string[]) => Promise.all(files.map(digestFile))

test('a machine sees what the layers below have, and writes to the last alone', {
  skip: onlyOnQemu('its disks are raw'),
}, async () => {
  await using storage = await temporaryStorage()
  await using vmm = await vmmOf(storage)
  assert.equal((await vmm.capabilities()).diskLayers, true)
  const base = await writtenBase(storage)
  const below = [path.join(base, 'overlay.ext4')]

  const first = await layOut(vmm, storage, 'first00000', { base, lower: [] })
  {
    const before = await digests(below)
    await using machine = await startBare(vmm, first)
    assert.equal(await machine.run('cat /data/*'), 'base\nbase\nbase\n')
    await machine.run('echo first > /data/first; echo first > /data/changed; rm /data/removed')
    await machine.run('head -c 2000000 /dev/urandom > /data/noise; sync')
    await machine.stop()
    assert.deepEqual(await digests(below), before)
  }
  below.push(freeze(path.join(first.directory, 'top.qcow2')))

  const second = await layOut(vmm, storage, 'second0000', { base, lower: below.slice(1) })
  // Another one at once, over the same files.
  const third = await layOut(vmm, storage, 'third00000', { base, lower: below.slice(1) })
  const before = await digests(below)
  await using one = await startBare(vmm, second)
  await using other = await startBare(vmm, { ...third, cid: 9_101 })
  const seen = 'base\nfirst\nfirst\n'
  for (const machine of [one, other]) {
    assert.equal(await machine.run('cat /data/base /data/changed /data/first; test ! -e /data/removed'), seen)
    await machine.run(
      `echo ${machine === one ? 'one' : 'other'} > /data/changed; head -c 1000000 /dev/zero > /data/zero; sync`,
    )
  }
  assert.deepEqual([await one.run('cat /data/changed'), await other.run('cat /data/changed')], ['one\n', 'other\n'])

  // Limits change as of any disk.
  const limitsOf = async () =>
    await withQmp(path.join(second.directory, 'qmp.sock'), async (qmp) =>
      ((await qmp.execute('query-block')) as { device: string; inserted: { bps: number; ro: boolean } }[]).map(
        ({ device, inserted: { bps, ro } }) => [device, bps, ro],
      ),
    )
  await one.machine.setLimits({ diskBytesPerSecond: 5_000_000, diskOperationsPerSecond: null, cpus: null })
  assert.deepEqual(await limitsOf(), [
    ['root', 5_000_000, true],
    ['overlay', 5_000_000, false],
  ])
  await one.stop()
  await other.stop()
  assert.deepEqual(await digests(below), before)
  for (const { directory } of [second, third]) {
    const top = path.join(directory, 'top.qcow2')
    assert.ok(statSync(top).size > 262_144, 'it was written to')
    await vmm.checkLayer(top, DISK_MIB * 1024 * 1024)
  }
})

test('a layer whose header leads elsewhere is refused before there is a machine', {
  skip: onlyOnQemu('its disks are raw'),
}, async () => {
  await using storage = await temporaryStorage()
  await using vmm = await vmmOf(storage)
  const base = await writtenBase(storage)
  const { directory, layers } = await layOut(vmm, storage, 'forged0000', { base, lower: [] })
  const top = path.join(directory, 'top.qcow2')
  const whole = readFileSync(top)
  const forge = (change: (bytes: Buffer) => void) => {
    const bytes = Buffer.from(whole)
    change(bytes)
    writeFileSync(top, bytes)
  }
  const refused = async (message: RegExp) => {
    await assert.rejects(vmm.start(bareSpec({ directory, layers })), { code: 'artifact-damaged', message })
    assert.equal((await readRun(directory)).run, undefined, 'nothing was started')
  }
  forge((bytes) => {
    bytes.write('/etc/passwd', 512)
    bytes.writeBigUInt64BE(512n, 8)
    bytes.writeUInt32BE('/etc/passwd'.length, 16)
  })
  await refused(/names a file below it/)
  forge((bytes) => {
    bytes.writeBigUInt64BE(4n, 72)
    bytes.writeUInt32BE(0x44415441, 104)
    bytes.writeUInt32BE('/etc/passwd'.length, 108)
    bytes.write('/etc/passwd', 112)
  })
  await refused(/keeps its data in another file/)
  forge(() => undefined)
  const longer = openSync(top, 'r+')
  writeSync(longer, Buffer.from([0, 0, 0, 1, 0, 0, 0, 0]), 0, 8, 24)
  await refused(/a disk of 4294967296 bytes, not 67108864/)
  forge(() => undefined)
  await using machine = await startBare(vmm, { directory, layers })
  assert.equal(await machine.run('echo whole'), 'whole\n')
  await machine.stop()
})
