/** A guest that breaks the protocol on purpose, in a real VM: each way has a named error in time, and costs the host little. */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { BandSoxError, type ErrorCode, openBandSox, prepareHost, type Sandbox } from 'bandsox'
import { GuestConnection } from 'bandsox/internal/guest/connection.js'
import { socketLink } from 'bandsox/internal/link/socket-link.js'
import { heldMemory, memoryPeakOf } from './support/memory.js'
import { type TestStorage, temporaryStorage } from './support/storage.js'

const hostileAgent = fileURLToPath(new URL('../../packages/bandsox/native/hostile-agent', import.meta.url))
const LIMIT_MS = 15_000
const MEMORY_LIMIT_BYTES = 32 * 1024 * 1024

let storage: TestStorage
let sandbox: Sandbox
let local: string

before(async () => {
  storage = await temporaryStorage()
  local = await mkdtemp(path.join(tmpdir(), 'bandsox-hostile-'))
  await prepareHost({ storage: storage.folder, agentPath: hostileAgent })
  sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base')
})

after(async () => {
  await sandbox?.delete({ force: true })
  await storage?.assertNothingLeft()
  await storage?.[Symbol.asyncDispose]()
  await rm(local, { recursive: true })
})

/** Runs the attempt, watches time and memory, and checks the error. */
async function assertRefused(attempt: () => Promise<unknown>, code: ErrorCode, message: RegExp): Promise<void> {
  const startedAt = performance.now()
  const costBytes = await memoryPeakOf(() =>
    assert.rejects(attempt, (error) => {
      assert.ok(error instanceof BandSoxError, String(error))
      assert.deepEqual(
        { code: error.code, matches: message.test(error.message) },
        { code, matches: true },
        error.message,
      )
      return true
    }),
  )
  const tookMs = performance.now() - startedAt
  assert.ok(tookMs < LIMIT_MS, `it took ${tookMs} ms`)
  assert.ok(costBytes < MEMORY_LIMIT_BYTES, `it cost ${costBytes / 1024 / 1024} MiB`)
}

const greetings: [offset: number, mode: string, code: ErrorCode, message: RegExp][] = [
  [1, 'garbage', 'guest-protocol', /frame-kind-unknown/],
  [2, 'silence', 'guest-silent', /within \d+ ms/],
  [3, 'a frame of 4 GiB', 'guest-protocol', /frame-too-large/],
  [4, 'a byte per second', 'guest-silent', /within \d+ ms/],
  [5, 'a hundred thousand brackets', 'guest-protocol', /message-too-deep/],
  [6, 'half a frame', 'link-lost', /frame-truncated/],
  [7, 'pongs without end', 'guest-protocol', /pong is out of place/],
  [8, 'a version that was not offered', 'agent-incompatible', /protocol/],
  [9, 'text that is not UTF-8', 'guest-protocol', /message-not-utf8/],
  [10, 'an empty frame', 'guest-protocol', /frame-empty/],
]

for (const [offset, mode, code, message] of greetings) {
  test(`a greeting of ${mode} is ${code}`, async () => {
    const { directory, vsock } = await sandbox.info()
    assert.ok(vsock)
    const link = socketLink('vsock', path.join(directory, 'vsock.sock'), vsock.port + offset)
    await assertRefused(() => GuestConnection.open(link), code, message)
  })
}

const download = (mode: string) => () => sandbox.files.download(`/hostile/${mode}`, path.join(local, mode))
const upload = (mode: string, sizeBytes: number) => () =>
  sandbox.files.write(`/hostile/${mode}`, Buffer.alloc(sizeBytes))
const exec = (mode: string) => () => sandbox.exec([mode]).collect()

const operations: [string, () => Promise<unknown>, ErrorCode, RegExp][] = [
  ['output without end', exec('flood-stdout'), 'output-too-large', /more than/],
  ['an exit with code and signal', exec('bad-exit'), 'guest-protocol', /message-invalid/],
  ['the answer to another question', exec('wrong-answer'), 'guest-protocol', /out of place/],
  ['data beyond what was announced', download('flood-data'), 'guest-protocol', /more than the \d+ bytes/],
  ['a file of 9 petabytes', download('huge-size'), 'no-space', /bytes are needed/],
  ['a false checksum of a download', download('bad-checksum'), 'checksum-mismatch', /arrived/],
  ['a false checksum of an upload', upload('bad-checksum', 1_000_000), 'checksum-mismatch', /were sent/],
  ['an ack of more than was sent', upload('ack-beyond', 20_000_000), 'guest-protocol', /ack of/],
  ['an ack that goes back', upload('ack-back', 20_000_000), 'guest-protocol', /ack of/],
]

for (const [what, attempt, code, message] of operations) {
  test(`${what} is ${code}, and leaves no file`, async () => {
    await assertRefused(attempt, code, message)
    assert.deepEqual(await readdir(local), [])
  })
}

test('a folder of endless entries can be left at any moment, and costs no memory', async () => {
  const before = heldMemory()
  let count = 0
  let held = 0
  for await (const _ of sandbox.files.list('/hostile/flood-entries')) {
    if (++count < 60_000) continue
    held = heldMemory() - before
    break
  }
  assert.ok(held < MEMORY_LIMIT_BYTES, `it holds ${held / 1024 / 1024} MiB`)
})

test('acks without end, or no acks, end an upload in an error', async () => {
  await assertRefused(upload('flood-ack', 100_000), 'guest-protocol', /ack of 0/)
  await assertRefused(upload('bad-checksum', 20_000_000), 'guest-silent', /within \d+ ms/)
})

test('a file that is shorter than announced is as long as its end says', async () => {
  const { sizeBytes } = await sandbox.files.download('/hostile/short-data', path.join(local, 'short-data'))
  assert.equal(sizeBytes, 999)
})

test('a guest that answers nothing can still be stopped, by force in the end', async () => {
  await sandbox.stop()
  assert.equal((await sandbox.info()).state.kind, 'stopped')
})
