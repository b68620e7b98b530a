/** What shows only after a while: memory that grows, a link that tires of connections, boots that fail now and then. */
import assert from 'node:assert/strict'
import { readdirSync } from 'node:fs'
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { test } from 'node:test'
import { openBandSox } from 'bandsox'
import { memoryPeakOf } from './support/memory.js'
import { boundedOrFull } from './support/scale.js'
import { temporaryStorage, until } from './support/storage.js'

const MIB = 1024 * 1024
/** Whatever grew with the file would be a multiple of it; the 20 MiB that are promised are measured by bench/, as V8 collects when it likes. */
const RSS_LIMIT_BYTES = 40 * MIB

const sizeMib = boundedOrFull(256, 1024)

test(`memory of this process stays flat through ${sizeMib} MiB up and down`, async () => {
  await using storage = await temporaryStorage()
  const local = await mkdtemp(path.join(tmpdir(), 'bandsox-large-'))
  try {
    await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
    const large = path.join(local, 'large')
    const file = await open(large, 'w')
    await file.truncate(sizeMib * MIB)
    await file.close()
    await sandbox.files.write('/root/warm-up', Buffer.alloc(20 * MIB)) // what is loaded once counts for nobody
    await sandbox.files.read('/root/warm-up')
    const up = await memoryPeakOf(() => sandbox.files.upload(large, '/root/large'))
    const down = await memoryPeakOf(() => sandbox.files.download('/root/large', path.join(local, 'back')))
    assert.ok(up < RSS_LIMIT_BYTES, `upload: ${up / MIB} MiB`)
    assert.ok(down < RSS_LIMIT_BYTES, `download: ${down / MIB} MiB`)
  } finally {
    await rm(local, { recursive: true })
  }
})

test('a guest with little memory takes files of many times its memory, with nothing but the agent to run', async () => {
  await using storage = await temporaryStorage()
  await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base', {
    memoryMib: 128,
  })
  const content = Buffer.alloc(64 * MIB, 7)
  for (let file = 0; file < boundedOrFull(4, 40); file++) await sandbox.files.write(`/root/file${file % 3}`, content)
  assert.equal((await sandbox.exec(['echo', 'well']).collect()).stdout, 'well\n')
})

const rounds = boundedOrFull(60, 3_000)

test(`after ${rounds} operations that were given up at all moments, the link is as good as new and nothing piles up`, async () => {
  await using storage = await temporaryStorage()
  await using sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
  await sandbox.exec('head -c 3000000 /dev/zero > /root/file').wait()
  const descriptors = () => readdirSync('/proc/self/fd').length
  const before = descriptors()
  for (let round = 0; round < rounds; round++) {
    const signal = AbortSignal.timeout(round % 30)
    const attempt =
      round % 3 === 0 ? sandbox.files.read('/root/file', { signal }) : sandbox.exec(['sleep', '600'], { signal }).wait()
    await assert.rejects(attempt, { name: 'TimeoutError' })
    if (round % 10 === 9) assert.equal((await sandbox.exec(['echo', 'well']).collect()).stdout, 'well\n')
  }
  assert.ok(descriptors() <= before + 8, `${descriptors() - before} descriptors more than before`)
  const left = async () => (await sandbox.exec("ps | grep -c '[s]leep 600' || true").collect()).stdout
  await until(async () => (await left()) === '0\n', 'the commands that were given up to be killed')
})

const boots = boundedOrFull(3, 100)

test(`${boots} boots in a row all answer`, async () => {
  await using storage = await temporaryStorage()
  const bandsox = await openBandSox({ storage: storage.folder })
  for (let boot = 0; boot < boots; boot++) {
    const sandbox = await bandsox.create('bandsox/base')
    assert.equal((await sandbox.exec(['echo', String(boot)]).collect()).stdout, `${boot}\n`)
    await sandbox.delete({ force: true })
  }
  await storage.assertNothingLeft()
})
