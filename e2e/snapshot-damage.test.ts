/** What is not as it was saved is not started: each file of a snapshot, by one bit. */
import assert from 'node:assert/strict'
import { readFileSync, renameSync, statSync, truncateSync } from 'node:fs'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { openBandSox } from 'bandsox'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { cli } from './support/command-line.js'
import { flip, leavesAllAsItWas, type Opened, openWith, output, unshare } from './support/snapshots.js'
import { isOnFirecracker, type TestStorage, temporaryStorage } from './support/storage.js'

let storage: TestStorage
let opened: Opened
let whole: string
/** Of a clone of the other one: its disk has a layer more. */
let id: string
let folder: string
let names: string[]

before(async () => {
  storage = await temporaryStorage()
  opened = await openWith(storage.folder)
  const { bandsox } = opened
  const source = await bandsox.create('bandsox/base', { memoryMib: 128, diskMib: 64 })
  whole = (await source.snapshot()).id
  await source.delete({ force: true })
  const clone = await bandsox.snapshots.restore(whole)
  await output(clone, 'head -c 1000000 /dev/urandom > /root/noise; sync')
  id = (await clone.snapshot({ name: 'damaged' })).id
  await clone.delete({ force: true })
  folder = path.join(storage.folder, 'snapshots', id)
  names = (await bandsox.snapshots.verify(id)).files.map(({ name }) => name)
  // Others have them too: the image, the first snapshot.
  for (const name of names) await unshare(path.join(folder, name))
})
after(async () => {
  await opened[Symbol.asyncDispose]()
  await storage[Symbol.asyncDispose]()
})

const at = (name: string) => path.join(folder, name)

async function isFoundBy(name: string, ways: ('verify' | 'restore')[]): Promise<void> {
  const { snapshots } = opened.bandsox
  const isNamed = hasCode('snapshot-damaged', new RegExp(`^${name} of snapshot ${id} `))
  await leavesAllAsItWas(storage.folder, async () => {
    for (const way of ways) await assert.rejects(snapshots[way](id), isNamed, `${name}, by ${way}`)
  })
}

test('copies of its files in their place are as good, once they were read', async () => {
  assert.deepEqual(names.sort(), [
    ...['devices', ...(isOnFirecracker ? [] : ['layer-1.qcow2']), 'memory', 'overlay.ext4', 'root.squashfs'],
  ])
  const sandbox = await opened.bandsox.snapshots.restore(id)
  assert.equal(await output(sandbox, 'wc -c < /root/noise'), '1000000')
  await sandbox.delete({ force: true })
})

test('one bit of any file is found, named, and nothing is started', async () => {
  const { snapshots } = opened.bandsox
  for (const name of names) {
    const { size } = statSync(at(name))
    // The last one is in a hole of the memory and of the disk, which nobody reads.
    for (const position of [0, Math.floor(size / 2), size - 1]) {
      await flip(at(name), position)
      await isFoundBy(name, ['verify', 'restore'])
      await flip(at(name), position)
    }
    // Without a trace: only who reads it finds that.
    await flip(at(name), Math.floor(size / 3), { keepsTime: true })
    await isFoundBy(name, ['verify', 'restore'])
    await flip(at(name), Math.floor(size / 3), { keepsTime: true })
  }
  await snapshots.verify(id)
})

test('so it is for what it says of itself, and others are to be had', async () => {
  const { bandsox, warnings } = opened
  for (const name of ['manifest.json', 'manifest.sha256']) {
    await flip(at(name), 10, { keepsTime: true })
    await isFoundBy(name, name === 'manifest.json' ? ['verify', 'restore'] : ['verify'])
    await assert.rejects(
      bandsox.snapshots.export(id, path.join(storage.folder, 'exported')),
      hasCode('snapshot-damaged', new RegExp(name)),
    )
    if (name === 'manifest.json') {
      await assert.rejects(bandsox.snapshots.get(id), hasCode('snapshot-damaged', /manifest\.json/))
      assert.deepEqual(
        (await bandsox.snapshots.list()).map((each) => each.id),
        [whole],
      )
      assert.match(warnings.at(-1) ?? '', new RegExp(`manifest.json of snapshot ${id} is not as it was written`))
    }
    await flip(at(name), 10, { keepsTime: true })
  }
  await bandsox.snapshots.verify(id)
})

test('a file that is cut short, or gone, is named, and the command line says so', async () => {
  const memory = readFileSync(at('memory'))
  assert.equal(memory.length, 128 * 1024 * 1024)
  truncateSync(at('memory'), memory.length - 4096)
  await isFoundBy('memory', ['verify', 'restore'])
  truncateSync(at('memory'), memory.length)
  renameSync(at('devices'), at('devices.gone'))
  await isFoundBy('devices', ['verify', 'restore'])
  const verified = await cli(storage.folder, ['snapshot', 'verify', 'damaged', whole])
  assert.notEqual(verified.status, 0)
  assert.match(verified.stdout, new RegExp(`^Snapshot whole: ${whole} \\(4 files\\)\n$`))
  assert.match(verified.stderr, new RegExp(`devices of snapshot ${id} is missing\nhint: `))
  assert.equal((await cli(storage.folder, ['snapshot', 'delete', 'damaged'])).status, 0)
  const all = await cli(storage.folder, ['snapshot', 'verify'])
  assert.equal(all.stdout, `Snapshot whole: ${whole} (4 files)\n`)
  await openBandSox({ storage: storage.folder }).then((bandsox) => bandsox.snapshots.delete(whole))
  await storage.assertNothingLeft()
})
