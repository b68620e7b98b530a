/**
 * A guest that breaks the serial line on purpose, at each of its layers, in a real VM: each way has a named error in time, costs manager
 * and shim little, and leaves both of them, and the VM's other link, at work.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { after, before, test } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { BandSoxError, type ErrorCode, openBandSox, prepareHost, type Sandbox } from 'bandsox'
import { Agent } from 'bandsox/internal/guest/agent.js'
import { GuestConnection } from 'bandsox/internal/guest/connection.js'
import { download } from 'bandsox/internal/guest/download.js'
import { forwardConnection } from 'bandsox/internal/guest/forward.js'
import { startJob } from 'bandsox/internal/guest/job.js'
import { upload } from 'bandsox/internal/guest/upload.js'
import { bytesSource } from 'bandsox/internal/guest/upload-source.js'
import type { Link } from 'bandsox/internal/link/link.js'
import { socketLink } from 'bandsox/internal/link/socket-link.js'
import { linkStatistics, readRun } from 'bandsox/internal/process/shim.js'
import { memoryPeakOf, memoryPeakOfProcess } from './support/memory.js'
import { boundedOrFull } from './support/scale.js'
import { onlyOnQemu, type TestStorage, temporaryStorage, until } from './support/storage.js'

const hostileAgent = fileURLToPath(new URL('../../packages/bandsox/native/hostile-agent', import.meta.url))
const isFull = boundedOrFull(0, 1) === 1
const MEMORY_LIMIT_BYTES = 32 * 1024 * 1024
/** The shim gives a serial dial 10 s. */
const LIMIT_MS = 20_000
/** What each link gets when another one is there (guest/ladder.ts); in full, more than the shim's own limit. */
const TRY_MS = boundedOrFull(1_500, 15_000)
/** How long the line is hostile: longer than it is tried. */
const HOSTILE_S = boundedOrFull(2, 11)
/** Of guest/cmd/hostile-agent: the ports that make the line itself hostile, 100 for each mode, in the order of lineModes. */
const FIRST_LINE_PORT = 1_000_000
const lineModes = [
  ...[
    'noise',
    'headers-too-large',
    'headers-unfinished',
    'flood-hello',
    'flood-welcome',
    'flood-lost',
    'other-sessions',
  ],
  ...['gaps', 'ack-beyond', 'all-lost', 'beyond-window', 'unknown-streams', 'overrun', 'flood-credit', 'flood-close'],
  ...['accepted-twice', 'mute', 'never-acknowledged', 'unread', 'drip', 'console', 'console-shreds'],
] as const
type LineMode = (typeof lineModes)[number]
const ABLE = 11
/** Of each of both files. */
const CONSOLE_LOG_BYTES = 8 * 1024 * 1024

let storage: TestStorage
let local: string
let sandbox: Sandbox
let directory: string
let port: number
let shimPid: number

before(async () => {
  storage = await temporaryStorage()
  local = await mkdtemp(path.join(tmpdir(), 'bandsox-hostile-'))
  await prepareHost({ storage: storage.folder, agentPath: hostileAgent })
  sandbox = await (await openBandSox({ storage: storage.folder })).create('bandsox/base', { vsock: 'on' })
  const info = await sandbox.info()
  assert.ok(info.vsock)
  ;({ directory } = info)
  port = info.vsock.port
  shimPid = await shimOf(directory)
})

after(async () => {
  await sandbox?.delete({ force: true })
  await storage?.assertNothingLeft()
  await storage?.[Symbol.asyncDispose]()
  await rm(local, { recursive: true })
})

async function shimOf(of: string): Promise<number> {
  const { run, shimAlive } = await readRun(of)
  assert.ok(run !== undefined && shimAlive, 'there is no shim')
  return run.shim.pid
}

const linkTo = (kind: Link['kind'], at: number, of = directory): Link =>
  socketLink(kind, path.join(of, `${kind}.sock`), at)

/** Fails unless an honest greeting is answered over the link. */
async function assertAnswers(link: Link, timeoutMs = TRY_MS): Promise<void> {
  ;(await GuestConnection.open(link, { timeoutMs })).close()
}

/** Runs the attempt, watches its time and what it costs, and checks the error. */
async function assertRefused(
  attempt: () => Promise<unknown>,
  { code, message, shim = shimPid }: { code: ErrorCode | ErrorCode[]; message: RegExp; shim?: number },
): Promise<void> {
  const startedAt = performance.now()
  let managerBytes = 0
  const shimBytes = await memoryPeakOfProcess(shim, async () => {
    managerBytes = await memoryPeakOf(() =>
      assert.rejects(attempt, (error) => {
        assert.ok(error instanceof BandSoxError, String(error))
        assert.ok([code].flat().includes(error.code) && message.test(error.message), `${error.code}: ${error.message}`)
        return true
      }),
    )
  })
  const tookMs = performance.now() - startedAt
  assert.ok(tookMs < LIMIT_MS, `it took ${tookMs} ms`)
  for (const [who, bytes] of Object.entries({ manager: managerBytes, shim: shimBytes }))
    assert.ok(bytes < MEMORY_LIMIT_BYTES, `it cost the ${who} ${bytes / 1024 / 1024} MiB`)
}

// What PROTOCOL.md forbids, over streams of an honest line.

const greetings: [offset: number, mode: string, code: ErrorCode, message: RegExp][] = [
  [1, 'garbage', 'guest-protocol', /frame-kind-unknown/],
  [2, 'silence', 'guest-silent', /within \d+ ms/],
  [3, 'a frame of 4 GiB', 'guest-protocol', /frame-too-large/],
  [5, 'a hundred thousand brackets', 'guest-protocol', /message-too-deep/],
  [6, 'half a frame', 'link-lost', /frame-truncated/],
  [7, 'pongs without end', 'guest-protocol', /pong is out of place/],
  [8, 'a version that was not offered', 'agent-incompatible', /protocol/],
  [9, 'text that is not UTF-8', 'guest-protocol', /message-not-utf8/],
  [10, 'an empty frame', 'guest-protocol', /frame-empty/],
]

for (const [offset, mode, code, message] of greetings) {
  test(`over the serial line a greeting of ${mode} is ${code}`, async () => {
    // An agent on a serial line has 30 s; here it has what a try has.
    const open = () => GuestConnection.open(linkTo('serial', port + offset), { timeoutMs: 1_500 })
    await assertRefused(open, { code, message })
  })
}

const over = { link: 'serial' } as const
const operations: [string, () => Promise<unknown>, ErrorCode, RegExp][] = [
  ['output without end', () => sandbox.exec(['flood-stdout'], over).collect(), 'output-too-large', /more than/],
  [
    'the answer to another question',
    () => sandbox.exec(['wrong-answer'], over).wait(),
    'guest-protocol',
    /out of place/,
  ],
  [
    'data beyond what was announced',
    () => sandbox.files.download('/hostile/flood-data', path.join(local, 'none'), over),
    'guest-protocol',
    /more than the \d+ bytes/,
  ],
  [
    'an ack of more than was sent',
    () => sandbox.files.write('/hostile/ack-beyond', Buffer.alloc(20_000_000), over),
    'guest-protocol',
    /ack of/,
  ],
]

for (const [what, attempt, code, message] of operations) {
  test(`over the serial line ${what} is ${code}`, () => assertRefused(attempt, { code, message }))
}

// What sections 5, 6 and 8 of PROTOCOL.md add, over both links.

/** Forwards a connection to a client that reads, or not, and says a word and its end. */
async function forwards(agent: Agent, mode: string, client: { reads: boolean }): Promise<void> {
  const server = createServer({ allowHalfOpen: true, pauseOnConnect: true })
  server.listen(0, '127.0.0.1')
  await once(server, 'listening')
  const theirs = connect({ port: (server.address() as AddressInfo).port, host: '127.0.0.1', allowHalfOpen: true })
  try {
    const [ours] = (await once(server, 'connection')) as [Socket]
    for (const socket of [ours, theirs]) socket.on('error', () => undefined) // it is reset, in the end
    theirs.end('word')
    if (client.reads) theirs.resume()
    await forwardConnection(agent, ours, { port: 1, host: mode }, AbortSignal.timeout(LIMIT_MS))
  } finally {
    theirs.destroy()
    server.close()
  }
}

type Attempt = (agent: Agent) => Promise<unknown>
const runs =
  (mode: string, input?: string): Attempt =>
  (agent) =>
    startJob(async () => agent, { argv: [mode] }, input === undefined ? {} : { input }).wait()
const sends =
  (mode: string): Attempt =>
  (agent) =>
    upload(agent, `/hostile/${mode}`, bytesSource(Buffer.alloc(1_000_000)))
const nowhere = { begin: async () => undefined, write: async () => undefined, commit: async () => undefined }
const fetches =
  (mode: string): Attempt =>
  (agent) =>
    download(agent, `/hostile/${mode}`, nowhere)
const tunnels =
  (mode: string, reads = true): Attempt =>
  (agent) =>
    forwards(agent, mode, { reads })

/** These take some seconds each, since the guest is given several chances; `npm test` has the first two, over the serial line. */
const stalls: [string, Attempt, ErrorCode, RegExp][] = [
  ['a command that acknowledges the same and ends', runs('ack-again', 'in'), 'link-lost', /closed|broke/],
  ['an upload that never gets further', sends('again'), 'link-lost', /closed|broke/],
  ['a download that never gets further', fetches('again'), 'link-lost', /closed|broke/],
  ['a command that never gets further', runs('again'), 'link-lost', /closed|broke/],
]
const resumptions: [string, Attempt, ErrorCode, RegExp][] = [
  ['an upload that is ready beyond all that was sent', sends('ready-beyond'), 'guest-protocol', /ready from/],
  ['a download that is ready beyond what was asked for', fetches('ready-beyond'), 'guest-protocol', /ready from/],
  ['an upload that is ready without end', sends('flood-ready'), 'guest-protocol', /out of place/],
  ['a download that is ready without end', fetches('flood-ready'), 'guest-protocol', /out of place/],
  ['a command that is attached elsewhere', runs('attached-elsewhere'), 'guest-protocol', /another offset/],
  ['a command with input that nobody sent', runs('attached-beyond', 'in'), 'guest-protocol', /input that was not sent/],
  ['a command that is attached without end', runs('flood-attached'), 'guest-protocol', /out of place/],
  ['an ack of no input', runs('ack-nothing'), 'guest-protocol', /ack is out of place/],
  [
    'output behind an exit',
    async (agent) => {
      await runs('late-output')(agent)
      await runs('late-output')(agent) // over the same connection, where what was too late lies
    },
    'guest-protocol',
    /out of place/,
  ],
  ['an ack of a connection beyond what was sent', tunnels('connect-ack-beyond'), 'guest-protocol', /were not sent/],
  ['an ack of a connection that goes back', tunnels('connect-ack-back'), 'guest-protocol', /were not sent/],
  ['a connection that is ended twice', tunnels('connect-eof-twice'), 'guest-protocol', /twice/],
  ['data behind the end of a connection', tunnels('connect-late-data'), 'guest-protocol', /behind the end/],
  ['a connection that floods who does not read', tunnels('connect-flood', false), 'guest-protocol', /not acknowledged/],
]

const both = ['vsock', 'serial'] as const
const cases = [
  ...resumptions.map((each) => ({ each, kinds: both })),
  ...(isFull ? stalls : stalls.slice(0, 2)).map((each) => ({ each, kinds: isFull ? both : (['serial'] as const) })),
]
for (const { each, kinds } of cases) {
  const [what, attempt, code, message] = each
  test(`${what} is ${code} over ${kinds.join(' and ')}`, async () => {
    for (const kind of kinds) {
      const agent = new Agent([linkTo(kind, port + ABLE)])
      try {
        await assertRefused(() => attempt(agent), { code, message })
      } finally {
        agent.close()
      }
    }
  })
}

// What SERIAL.md forbids.

/** Dials the mode, and comes back when the line is honest again. */
async function assertSurvives(mode: LineMode, of: string, at: number): Promise<void> {
  const shim = await shimOf(of)
  const hostile = linkTo('serial', FIRST_LINE_PORT + 100 * lineModes.indexOf(mode) + HOSTILE_S, of)
  await assertRefused(() => GuestConnection.open(hostile, { timeoutMs: TRY_MS }), {
    code: ['link-refused', 'link-lost', 'guest-silent', 'guest-protocol'],
    message: /link|guest|agent/,
    shim,
  })
  // Now as an operation tries it that may well come while it lasts.
  await until(
    () =>
      assertAnswers(linkTo('serial', at, of), 1_000).then(
        () => true,
        () => false,
      ),
    'an honest line',
    30_000,
  )
  assert.equal(await shimOf(of), shim)
}

/** `npm test` has those that are unlike each other. */
const inBrief: LineMode[] = ['noise', 'headers-unfinished', 'overrun', 'mute', 'unread']

for (const mode of isFull ? lineModes : inBrief) {
  test(`a line of ${mode} is survived, and vsock does not suffer`, { skip: onlyOnQemu('it has no port') }, async () => {
    await Promise.all([assertSurvives(mode, directory, port), assertAnswers(linkTo('vsock', port), 5_000)])
    assert.equal((await linkStatistics(directory)).serial?.kind, 'port')
  })
}

test('a console that is a hostile line as well is still a console, and a bounded one', async (t) => {
  const configFile = `${storage.folder}.config.json`
  await writeFile(configFile, JSON.stringify({ qemu: { serialLine: 'uart' } }))
  const bandsox = await openBandSox({ storage: storage.folder, configFile })
  const uart = await bandsox.create('bandsox/base', { vsock: 'on' })
  const { directory: of, vsock } = await uart.info()
  assert.ok(vsock)
  t.after(async () => {
    await uart.delete({ force: true })
    await rm(configFile)
  })
  for (const mode of isFull ? lineModes : (['console'] as const)) {
    await t.test(mode, async () => {
      const following = new AbortController()
      let seen = ''
      const reader = (async () => {
        for await (const chunk of uart.logs({ follow: true, signal: following.signal }))
          seen = (seen + Buffer.from(chunk).toString('latin1')).slice(-1_000_000)
      })().catch((error: unknown) => assert.equal(error, following.signal.reason))
      await Promise.all([assertSurvives(mode, of, vsock.port), assertAnswers(linkTo('vsock', vsock.port, of), 5_000)])
      await until(() => seen.includes('the line is honest'), 'the console to say so')
      if (mode === 'console') assert.match(seen, /^console line \d+\r?$/m)
      following.abort(new Error('enough was seen'))
      await reader
      // What a guest left there does not keep the shim busy.
      const before = cpuMsOf(await shimOf(of))
      await delay(500)
      assert.ok(cpuMsOf(await shimOf(of)) - before < 250, 'the shim spins')
    })
  }
  for (const name of ['console.log', 'console.log.1']) {
    const { size } = await stat(path.join(of, name)).catch(() => ({ size: 0 })) // not rotated yet
    assert.ok(size <= CONSOLE_LOG_BYTES, `${name} has ${size} bytes`)
  }
})

/** @see proc_pid_stat(5): utime and stime, in ticks of 10 ms. */
function cpuMsOf(pid: number): number {
  const fields = readFileSync(`/proc/${pid}/stat`, 'utf8').split(') ')[1]?.split(' ') ?? []
  return (Number(fields[11]) + Number(fields[12])) * 10
}
