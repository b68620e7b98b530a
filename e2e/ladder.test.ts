/** Transfers and commands of real VMs over links that are missing, fail, and break in the middle: nothing is lost, and nothing is asked of anybody. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rename, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, openBandSox, type Sandbox, type TransferOptions, type TransferResult } from 'bandsox'
import { readRun } from 'bandsox/internal/process/shim.js'
import { type CuttingSocket, cuttingSocket } from 'bandsox/internal/testing/cutting-socket.js'
import { seededRandom } from 'bandsox/internal/testing/random.js'
import { takeVsockOut } from './support/boot-without-vsock.js'
import { randomBytes } from './support/random.js'
import { boundedOrFull } from './support/scale.js'
import { onlyOnQemu, type TestStorage, temporaryStorage, until } from './support/storage.js'

const SIZE_BYTES = (process.env['E2E_SIZE'] === 'small' ? 4 : 64) * 1024 * 1024
const seed = Number(process.env['BANDSOX_CHAOS_SEED'] ?? 7)
const content = randomBytes(SIZE_BYTES, 6)
const digest = (bytes: Buffer) => createHash('md5').update(bytes).digest('hex')
const contentDigest = digest(content)

const withoutDaemon = onlyOnQemu('its vsock is its own, with no daemon to kill')
const withoutPort = onlyOnQemu(
  'its serial line is the UART, over which serial.test.ts sends what is not too large for that',
)

let storage: TestStorage
let local: string
let source: string

before(async () => {
  storage = await temporaryStorage()
  local = await mkdtemp(path.join(tmpdir(), 'bandsox-ladder-'))
  source = path.join(local, 'source')
  await writeFile(source, content)
})

after(async () => {
  await storage?.assertNothingLeft()
  await storage?.[Symbol.asyncDispose]()
  await rm(local, { recursive: true })
})

const inGuest = '/data/file'

/** Uploads, and looks at what has arrived with the guest's own program. */
async function uploads(sandbox: Sandbox, options: TransferOptions = {}): Promise<TransferResult> {
  const result = await sandbox.files.upload(source, inGuest, options)
  const { stdout } = await sandbox.exec(['md5sum', inGuest]).collect()
  assert.equal(stdout.split(' ')[0], contentDigest)
  return result
}

async function downloads(sandbox: Sandbox, options: TransferOptions = {}): Promise<TransferResult> {
  const file = path.join(local, 'downloaded')
  const result = await sandbox.files.download(inGuest, file, options)
  assert.equal(digest(await readFile(file)), contentDigest)
  return result
}

/** Calls `act` once, when so much of the file has moved. */
function at(share: number, act: () => void): TransferOptions {
  let isDone = false
  return {
    onProgress({ bytes }) {
      if (isDone || bytes < share * SIZE_BYTES) return
      isDone = true
      act()
    },
  }
}

async function killDaemon(sandbox: Sandbox): Promise<void> {
  const { run } = await readRun((await sandbox.info()).directory)
  assert.ok(run?.vsock, 'there is no vsock daemon')
  process.kill(run.vsock.pid, 'SIGKILL')
}

test('without a vsock device, all goes over the serial line', { skip: withoutPort }, async () => {
  const bandsox = await openBandSox({ storage: storage.folder })
  await using sandbox = await bandsox.create('bandsox/base', { vsock: 'off' })
  assert.equal((await sandbox.info()).vsock, null)
  assert.equal((await uploads(sandbox)).link, 'serial')
  assert.equal((await downloads(sandbox)).link, 'serial')
  await assert.rejects(sandbox.exec(['true'], { link: 'vsock' }).wait(), (error) => {
    assert.ok(error instanceof BandSoxError && error.code === 'vsock-unavailable')
    assert.match(error.message, /requires vsock support.*docs\/migration\.md/)
    return true
  })
})

test('with the module missing in the guest, too', { skip: withoutPort }, async () => {
  await using bare = await temporaryStorage()
  await takeVsockOut(bare.folder)
  {
    const bandsox = await openBandSox({ storage: bare.folder })
    await using sandbox = await bandsox.create('bandsox/base', { vsock: 'on' })
    assert.equal((await uploads(sandbox)).link, 'serial')
    assert.equal((await downloads(sandbox)).link, 'serial')
  }
  await bare.assertNothingLeft()
})

test('when the vsock daemon is killed in the middle of a file, it goes on over the serial line', {
  skip: withoutDaemon,
}, async (t) => {
  const bandsox = await openBandSox({ storage: storage.folder })
  await using sandbox = await bandsox.create('bandsox/base', { vsock: 'on' })
  const kills = [
    ['an upload', 0.1],
    ['a download', 0.5],
    ['an upload', 0.9],
    ['a download', 0.1],
    ['an upload', 0.5],
    ['a download', 0.9],
  ] as const
  for (const [index, [what, share]] of kills.slice(0, boundedOrFull(3, kills.length)).entries()) {
    await t.test(`${what} at ${share * 100} %`, async () => {
      if (index > 0) await sandbox.restart()
      assert.equal((await sandbox.exec(['true']).wait()).link, 'vsock')
      let killed: Promise<void> | undefined
      const transfer = what === 'an upload' ? uploads : downloads
      const { link } = await transfer(
        sandbox,
        at(share, () => (killed = killDaemon(sandbox))),
      )
      await killed
      assert.equal(link, 'serial')
    })
  }
})

test('cut at twenty random moments each way, a file still arrives whole, and vsock is taken back', async (t) => {
  const bandsox = await openBandSox({ storage: storage.folder })
  await using sandbox = await bandsox.create('bandsox/base', { vsock: 'on' })
  const { directory } = await sandbox.info()
  const links: CuttingSocket[] = []
  for (const name of ['vsock.sock', 'serial.sock']) {
    await rename(path.join(directory, name), path.join(directory, `whole-${name}`))
    links.push(await cuttingSocket(t, path.join(directory, `whole-${name}`), path.join(directory, name)))
  }
  // With no connection from before the links were cuttable.
  const anew = await (await openBandSox({ storage: storage.folder })).get(sandbox.id)
  const random = seededRandom(seed)
  for (const transfer of [uploads, downloads]) {
    const moments = Array.from({ length: 20 }, () => random.below(SIZE_BYTES)).sort((a, b) => a - b)
    let cuts = 0
    const result = await transfer(anew, {
      onProgress({ bytes }) {
        while (moments[0] !== undefined && bytes >= moments[0]) {
          moments.shift()
          for (const link of links) cuts += link.cutNow() > 0 ? 1 : 0
        }
      },
    })
    assert.equal(moments.length, 0)
    assert.ok(cuts >= 10, `only ${cuts} cuts met an open connection`) // two moments may fall between two reports
    assert.ok(result.sizeBytes === SIZE_BYTES)
  }
  await until(async () => (await anew.exec(['true']).wait()).link === 'vsock', 'vsock to be taken back')
  for (const name of ['vsock.sock', 'serial.sock'])
    await rename(path.join(directory, `whole-${name}`), path.join(directory, name))
})

test('a command that prints 10 MiB loses no byte when its link breaks, and runs once', {
  skip: withoutDaemon,
}, async () => {
  const bandsox = await openBandSox({ storage: storage.folder })
  await using sandbox = await bandsox.create('bandsox/base', { vsock: 'on' })
  const bytes = 10 * 1024 * 1024
  const script = `echo run >> /runs; head -c ${bytes} /dev/zero | tr '\\0' x; exit 3`
  const job = sandbox.exec(['sh', '-c', script])
  let received = 0
  let killed: Promise<void> | undefined
  for await (const { data } of job.output) {
    received += data.length
    assert.ok(data.every((byte) => byte === 0x78))
    if (received > bytes / 3) killed ??= killDaemon(sandbox)
  }
  await killed
  const { exitCode, link } = await job.wait()
  assert.deepEqual({ received, exitCode, link }, { received: bytes, exitCode: 3, link: 'serial' })
  assert.equal((await sandbox.exec(['cat', '/runs']).collect()).stdout, 'run\n')
})

test('a file on its way when another process pauses the machine goes on when it is resumed', async () => {
  const bandsox = await openBandSox({ storage: storage.folder })
  await using sandbox = await bandsox.create('bandsox/base', { vsock: 'on' })
  const other = await (await openBandSox({ storage: storage.folder })).get(sandbox.id)
  let paused: Promise<void> | undefined
  const pauseAndResume = async () => {
    await other.pause()
    await delay(boundedOrFull(500, 15_000)) // longer, in full, than any answer is waited for
    await other.resume()
  }
  await uploads(
    sandbox,
    at(0.4, () => (paused = pauseAndResume())),
  )
  await paused
  paused = undefined
  await downloads(
    sandbox,
    at(0.4, () => (paused = pauseAndResume())),
  )
  await paused
  assert.equal((await sandbox.exec(['true']).wait()).link, 'vsock')
})

test('what is not there fails at once over each link', async () => {
  const bandsox = await openBandSox({ storage: storage.folder })
  await using sandbox = await bandsox.create('bandsox/base', { vsock: 'on' })
  for (const link of ['vsock', 'serial'] as const) {
    const startedAt = performance.now()
    await assert.rejects(
      sandbox.files.download('/not/there', path.join(local, 'none'), { link }),
      (error) => error instanceof BandSoxError && error.code === 'file-not-found',
    )
    assert.ok(performance.now() - startedAt < 5_000)
  }
})
