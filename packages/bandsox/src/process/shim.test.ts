import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { chmod, readFile, rm, writeFile } from 'node:fs/promises'
import { createServer, type Socket } from 'node:net'
import path from 'node:path'
import { describe, it } from 'node:test'
import { readConfig } from '../config.js'
import { hasCode } from '../testing/errors.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { identify } from './identity.js'
import {
  adoptVmm,
  consoleConfig,
  describeExit,
  linkStatistics,
  readRun,
  SANDBOX_MARK,
  ShimClient,
  type ShimConfig,
  startShim,
} from './shim.js'
import { connectUnixSocket } from './unix-socket.js'

const STATUS = { event: 'status', vmm: { pid: 1, startTime: 1 }, vsock: 'none' }
const EXITED = { event: 'exited', code: 0, at: '2026-01-01T00:00:00Z' }
const config: ShimConfig = {
  version: 1,
  sandbox: 'sbx_aaaaaaaaaa',
  vmm: { argv: ['vmm'], env: {}, maxFiles: 10 },
  files: [],
  console: consoleConfig,
  remove: [],
}

/** A `shim.sock` that speaks SHIM.md: greets with a status, then lets the test answer each line. */
async function shimIn(
  t: TestScope,
  onLine: (socket: Socket, line: string) => void,
  onConnect?: (socket: Socket) => void,
): Promise<string> {
  const folder = await temporaryFolder(t)
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    sockets.add(socket)
    socket.on('error', () => undefined).on('close', () => sockets.delete(socket))
    say(socket, STATUS)
    onConnect?.(socket)
    socket.on('data', (chunk) => {
      for (const line of String(chunk).trimEnd().split('\n')) onLine(socket, line)
    })
  })
  server.listen(path.join(folder, 'shim.sock'))
  await once(server, 'listening')
  t.after(async () => {
    for (const socket of sockets) socket.destroy()
    server.close()
    await once(server, 'close')
  })
  return folder
}

const say = (socket: Socket, event: object) => void socket.write(`${JSON.stringify(event)}\n`)

describe('a shim', () => {
  it('is told to signal its VMM, and says when that has ended', async (t) => {
    const asked: string[] = []
    const folder = await shimIn(t, (socket, line) => {
      asked.push(line)
      say(socket, { event: 'vsock-died' })
      say(socket, { event: 'machine', status: 'io-error', since: 'now', reason: 'full' })
      say(socket, { event: 'signalled' })
      socket.end(`${JSON.stringify({ ...EXITED, code: undefined, signal: 'SIGTERM' })}\n`)
    })
    const client = await ShimClient.connect(folder)
    await client.signal('SIGTERM')
    const exit = await client.exited()
    assert.deepEqual(asked, ['{"op":"signal","signal":"SIGTERM"}'])
    assert.equal(describeExit(exit), 'the VMM was ended by SIGTERM at 2026-01-01T00:00:00Z')
  })

  it('is told to hold the link', async (t) => {
    const asked: string[] = []
    const folder = await shimIn(t, (socket, line) => {
      asked.push(line)
      say(socket, { event: 'link-held' })
    })
    const client = await ShimClient.connect(folder)
    await client.holdLink()
    assert.deepEqual(asked, ['{"op":"hold-link"}'])
    client.close()
  })

  it('tells how the links do', async (t) => {
    const traffic = { open: 1, opened: 2, toGuestBytes: 3, fromGuestBytes: 4 }
    const links = {
      vsock: { kind: 'daemon', state: 'dead', ...traffic },
      serial: {
        ...{ kind: 'uart', state: 'up', ...traffic, rttMs: 0.5, windowBytes: 6, payloadBytes: 7 },
        ...{ framesSent: 8, framesResent: 9, framesDamaged: 10 },
      },
    }
    const folder = await shimIn(t, (socket, line) => {
      assert.equal(line, '{"op":"links"}')
      say(socket, { event: 'links', ...links })
    })
    assert.deepEqual(await linkStatistics(folder), links)
    const reason = new Error('enough')
    await assert.rejects(linkStatistics(folder, AbortSignal.abort(reason)), (error) => error === reason)
  })

  it('that does not know of links, ends, or is silent, tells nothing of them', async (t) => {
    const refuses = { event: 'error', code: 'request-invalid', message: 'op "links" is none' }
    const old = await shimIn(t, (socket) => say(socket, refuses))
    await assert.rejects(linkStatistics(old), hasCode('vmm-failed', /does not tell of the links: op "links" is none/))
    const ends = await shimIn(t, (socket) => socket.end(`${JSON.stringify(EXITED)}\n`))
    await assert.rejects(linkStatistics(ends), hasCode('vmm-failed', /it has ended/))
    const lies = await shimIn(t, (socket) => say(socket, { event: 'links', vsock: null, serial: { kind: 'string' } }))
    await assert.rejects(linkStatistics(lies), hasCode('vmm-failed'))
    const enough = new AbortController()
    const silent = await shimIn(t, () => enough.abort(new Error('enough')))
    await assert.rejects(linkStatistics(silent, enough.signal), /enough/)
  })

  it('whose VMM has ended needs no signal any more', async (t) => {
    const folder = await shimIn(
      t,
      () => undefined,
      (socket) => socket.end(`${JSON.stringify(EXITED)}\n`),
    )
    const client = await ShimClient.connect(folder)
    assert.equal((await client.exited()).code, 0)
    await client.signal('SIGKILL') // at once, rather than after a wait for an answer that cannot come
  })

  it('that cannot signal says why', async (t) => {
    const folder = await shimIn(t, (socket) => say(socket, { event: 'error', code: 'x', message: 'not permitted' }))
    const client = await ShimClient.connect(folder)
    t.after(() => client.close())
    await assert.rejects(
      client.signal('SIGTERM'),
      hasCode('vmm-failed', /cannot send SIGTERM to the VMM: not permitted/),
    )
  })

  it('that dies without a word, or says something unknown, is a failure of the VMM', async (t) => {
    const cases: [string, (socket: Socket) => void, RegExp][] = [
      ['end', (socket) => socket.end(), /without saying/],
      ['reset', (socket) => socket.destroy(), /without saying/],
      ['not JSON', (socket) => socket.write('what\n'), /something unknown: what/],
      ['another event', (socket) => say(socket, { event: 'party' }), /something unknown/],
      ['a long line', (socket) => socket.write('x'.repeat(100_000)), /./],
    ]
    for (const [name, attack, message] of cases) {
      const folder = await shimIn(t, (socket) => attack(socket))
      const client = await ShimClient.connect(folder)
      await client.signal('SIGTERM') // an answer that does not come is not waited for once the shim is gone
      await assert.rejects(client.exited(), (error) =>
        hasCode(name === 'a long line' ? 'vmm-control' : 'vmm-failed', message)(error),
      )
    }
  })

  it('that goes while it is written to is a failure of the VMM, not a broken pipe', async (t) => {
    let gone: Socket | undefined
    const folder = await shimIn(
      t,
      () => undefined,
      (socket) => {
        gone = socket
        socket.pause()
      },
    )
    const client = await ShimClient.connect(folder)
    while (gone === undefined) await new Promise((resolve) => setImmediate(resolve))
    gone.destroy()
    await client.signal('SIGTERM')
    await assert.rejects(client.exited(), hasCode('vmm-failed'))
  })

  it('that is not there is a failure of the VMM', async (t) => {
    await assert.rejects(
      ShimClient.connect(await temporaryFolder(t)),
      hasCode('vmm-failed', /no shim answers in .*ENOENT/),
    )
  })

  it('whose VMM runs on is waited for no longer than was asked', async (t) => {
    const client = await ShimClient.connect(await shimIn(t, () => undefined))
    t.after(() => client.close())
    assert.equal(await client.exitedWithin(20), undefined)
  })
})

describe('starting a shim', () => {
  /** A program in the shim's place: what it prints is the contract. */
  async function program(t: TestScope, script: string): Promise<{ shim: string; folder: string }> {
    const folder = await temporaryFolder(t)
    const shim = path.join(folder, 'shim')
    await writeFile(shim, `#!/bin/sh\n${script}\n`)
    await chmod(shim, 0o755)
    return { shim, folder }
  }

  it('writes what to run, and gives the VMM that runs', async (t) => {
    const { shim, folder } = await program(
      t,
      'grep -q sbx_aaaaaaaaaa shim.json && echo \'{"event":"started","vmm":{"pid":7,"startTime":8}}\'',
    )
    assert.deepEqual(await startShim(shim, folder, config), { pid: 7, startTime: 8 })
  })

  it('marks it as the sandbox', async (t) => {
    const { shim, folder } = await program(t, `env > env; echo '{"event":"started","vmm":{"pid":7,"startTime":8}}'`)
    const marked = async () =>
      (await readFile(path.join(folder, 'env'), 'utf8')).includes(`${SANDBOX_MARK}=sbx_aaaaaaaaaa\n`)
    await startShim(shim, folder, config)
    assert.ok(await marked())
    await rm(path.join(folder, 'env'))
    await adoptVmm(shim, folder)
    assert.ok(await marked())
  })

  it('gives a way to the agent over a serial line, and says how that does', async (t) => {
    const { shimPath, agentPath } = readConfig()
    const folder = await temporaryFolder(t)
    await startShim(shimPath, folder, {
      ...config,
      // In the VMM's place: the agent itself, behind a line like a VMM's.
      vmm: { argv: [agentPath, 'serve-serial', 'fd=3'], env: {}, maxFiles: 100 },
      files: [{ listen: 'agent.sock' }],
      serial: { kind: 'port', socket: 'serial.sock', line: 'agent.sock' },
    })
    const client = await ShimClient.connect(folder)
    try {
      const stream = await connectUnixSocket(path.join(folder, 'serial.sock'))
      stream.write('CONNECT 9000\n')
      const [answer] = await once(stream, 'data')
      assert.match(String(answer), /^OK \d+\n$/)
      const { vsock, serial } = await linkStatistics(folder)
      assert.equal(vsock, null)
      assert.deepEqual([serial?.kind, serial?.state, serial?.open], ['port', 'up', 1])
      stream.destroy()
    } finally {
      await client.signal('SIGKILL')
      await client.exited()
      client.close()
    }
  })

  it('fails with what the shim says, or that it says nothing', async (t) => {
    const cases: [string, RegExp][] = [
      ['echo \'{"event":"failed","code":"vmm-start-failed","message":"qemu: no"}\'; exit 1', /^qemu: no$/],
      ['exit 1', /without a word$/],
      ['echo what', /without a word: what/],
      ['echo \'{"event":"started"}\'', /without a word/],
    ]
    for (const [script, message] of cases) {
      const { shim, folder } = await program(t, script)
      await assert.rejects(adoptVmm(shim, folder), hasCode('vmm-failed', message), script)
    }
    const { shim, folder } = await program(
      t,
      'echo \'{"event":"failed","code":"cid-in-use","message":"CID 3"}\'; exit 1',
    )
    await assert.rejects(startShim(shim, folder, config), hasCode('cid-in-use', /^CID 3$/))
    await assert.rejects(
      startShim('/no/shim', (await program(t, '')).folder, config),
      hasCode('host-missing', /cannot start the shim/),
    )
  })
})

describe('what a shim left', () => {
  it('says whether its VMM still runs, by pid and start time', async (t) => {
    const folder = await temporaryFolder(t)
    const nothing = { run: undefined, exit: undefined, vmmAlive: false, shimAlive: false, status: undefined }
    assert.deepEqual(await readRun(folder), nothing)
    const self = await identify(process.pid)
    assert.ok(self !== undefined)
    const run = { shim: { ...self, startTime: self.startTime + 1 }, vmm: self, startedAt: 'now' }
    await writeFile(path.join(folder, 'run.json'), JSON.stringify(run))
    const alive = { run, exit: undefined, vmmAlive: true, shimAlive: false, status: undefined }
    assert.deepEqual(await readRun(folder), alive)
    const status = { status: 'io-error', since: 'now', reason: 'full' }
    await writeFile(path.join(folder, 'machine.json'), `${JSON.stringify(status)}     \n`)
    assert.deepEqual(await readRun(folder), { ...alive, status })
    await writeFile(path.join(folder, 'exit.json'), JSON.stringify({ unknown: true, at: 'then' }))
    const { exit, vmmAlive, status: afterwards } = await readRun(folder)
    assert.equal(vmmAlive, false)
    assert.equal(afterwards, undefined)
    assert.ok(exit !== undefined)
    assert.equal(describeExit(exit), 'the VMM ended at then')
  })

  it('says how its VMM ended as soon as nobody is there to say it any more', async (t) => {
    const folder = await temporaryFolder(t)
    const [written, exit] = [path.join(folder, 'written'), path.join(folder, 'exit.json')]
    // Writes down the end last of all, and ends at once. Of 200 that are looked at without a pause some end in the middle of a look.
    const lastWords = `printf %s '{"code":3,"at":"then"}' > ${written}; read go; mv ${written} ${exit}`
    for (let round = 0; round < 200; round++) {
      await rm(exit, { force: true })
      const shim = spawn('sh', ['-c', `${lastWords}; kill -9 $$`], { stdio: ['pipe', 'ignore', 'inherit'] })
      const identity = await identify(shim.pid ?? 0)
      assert.ok(identity !== undefined)
      const run = { shim: identity, vmm: { ...identity, startTime: 1 }, startedAt: 'now' }
      await writeFile(path.join(folder, 'run.json'), JSON.stringify(run))
      shim.stdin.write('go\n')
      let found = await readRun(folder)
      while (found.shimAlive) found = await readRun(folder)
      assert.equal(found.exit?.code, 3, `round ${round}`)
      if (shim.exitCode === null && shim.signalCode === null) await once(shim, 'exit')
    }
  })
})
