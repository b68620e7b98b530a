import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { OutputChunk } from '@bandsox/sdk'
import { hasCode } from '../testing/errors.js'
import { statFile } from './inspect.js'
import { startJob } from './job.js'
import { agentWith, greet, HELLO, type HostPeer, messageFrame, type Script } from './testing/stand-in-agent.js'

const STDIN_WINDOW_BYTES = 262_144
const STARTED = { type: 'started', pid: 42 } as const

/** Greets, takes an `exec` and says that it has started; then `run` plays the command. */
const command =
  (run: (host: HostPeer) => Promise<void> | void): Script =>
  async (host) => {
    await greet(host)
    await host.expect('exec')
    host.say(STARTED)
    await run(host)
  }

async function texts(output: AsyncIterable<OutputChunk>): Promise<string[]> {
  const parts: string[] = []
  for await (const { stream, data } of output) parts.push(`${stream}:${Buffer.from(data).toString()}`)
  return parts
}

/** Bytes that may be awaited without end. */
async function* forever(): AsyncGenerator<Uint8Array> {
  await new Promise(() => undefined)
  yield Buffer.from('never')
}

describe('a command', () => {
  it('yields its output in the order in which it came, then how it ended', async (t) => {
    const { agent } = await agentWith(
      t,
      command((host) => {
        host.bulk('stdout', 'one')
        host.bulk('stderr', 'two')
        host.bulk('stdout', 'three')
        host.say({ type: 'exit', code: 3 })
      }),
    )
    const job = startJob(async () => agent, { argv: ['x'] })
    assert.deepEqual(await texts(job.output), ['stdout:one', 'stderr:two', 'stdout:three'])
    assert.deepEqual(await job.wait(), { exitCode: 3, signal: null, timedOut: false, link: 'vsock' })
  })

  it('says by which signal it was ended, and that its time was up', async (t) => {
    const { agent } = await agentWith(
      t,
      command((host) => host.say({ type: 'exit', signal: 'SIGKILL', timedOut: true })),
    )
    const result = await startJob(async () => agent, { argv: ['x'], timeoutMs: 5 }).wait()
    assert.deepEqual(result, { exitCode: null, signal: 'SIGKILL', timedOut: true, link: 'vsock' })
  })

  it('ends under wait() though nobody reads its output', async (t) => {
    const { agent } = await agentWith(
      t,
      command(async (host) => {
        const megabyte = Buffer.alloc(1_000_000)
        const header = Buffer.of(3, 0, 0x0f, 0x42, 0x40)
        for (let count = 0; count < 20; count++) await host.paced(Buffer.concat([header, megabyte]))
        host.say({ type: 'exit', code: 0 })
      }),
    )
    assert.equal((await startJob(async () => agent, { argv: ['x'] }).wait()).exitCode, 0)
  })

  it('is collected as text, whole characters though they came in pieces', async (t) => {
    const { agent } = await agentWith(
      t,
      command((host) => {
        for (const byte of Buffer.from('añ漢😀')) host.bulk('stdout', Buffer.of(byte))
        host.bulk('stderr', Buffer.of(0xff))
        host.say({ type: 'exit', code: 0 })
      }),
    )
    const { stdout, stderr } = await startJob(async () => agent, { shell: 'x' }).collect()
    assert.deepEqual({ stdout, stderr }, { stdout: 'añ漢😀', stderr: '\u{fffd}' })
  })

  it('that prints more than may be collected is killed', async (t) => {
    const { agent, guest } = await agentWith(
      t,
      command(async (host) => {
        while (await host.paced(Buffer.concat([Buffer.of(3, 0, 0, 0, 100), Buffer.alloc(100)])));
      }),
    )
    const job = startJob(async () => agent, { argv: ['yes'] })
    await assert.rejects(job.collect({ maxOutputBytes: 10_000 }), hasCode('output-too-large', /more than 10000 bytes/))
    await guest.idle()
    await assert.rejects(job.wait(), hasCode('cancelled'))
  })

  it('that prints byte by byte is collected whole', async (t) => {
    const frames = Buffer.concat(
      Array.from({ length: 20_000 }, (_, index) => Buffer.of(3, 0, 0, 0, 1, 0x61 + (index % 26))),
    )
    const { agent } = await agentWith(
      t,
      command(async (host) => {
        await host.paced(frames)
        host.say({ type: 'exit', code: 0 })
      }),
    )
    const { stdout } = await startJob(async () => agent, { argv: ['x'] }).collect()
    assert.equal(stdout, 'abcdefghijklmnopqrstuvwxyz'.repeat(770).slice(0, 20_000))
  })

  it('whose output is left early is killed by the closed connection', async (t) => {
    const { agent, guest } = await agentWith(
      t,
      command(async (host) => {
        host.bulk('stdout', 'first')
        await host.closed()
      }),
    )
    const job = startJob(async () => agent, { argv: ['x'] })
    for await (const { data } of job.output) {
      assert.equal(Buffer.from(data).toString(), 'first')
      break
    }
    await guest.idle()
    await assert.rejects(job.wait(), hasCode('cancelled', /not read to its end/))
  })

  it('has one reader', async (t) => {
    const { agent } = await agentWith(
      t,
      command((host) => {
        host.bulk('stdout', 'x')
        host.say({ type: 'exit', code: 0 })
      }),
    )
    const job = startJob(async () => agent, { argv: ['x'] })
    await texts(job.output)
    await assert.rejects(texts(job.output), hasCode('internal', /one reader/))
  })

  it('rejects with the reason of its signal while it is awaited', async (t) => {
    const reason = new Error('enough')
    const controller = new AbortController()
    const { agent, guest } = await agentWith(
      t,
      command(async (host) => {
        controller.abort(reason)
        await host.closed()
      }),
    )
    const job = startJob(async () => agent, { argv: ['x'] }, { signal: controller.signal })
    await assert.rejects(job.wait(), (error) => error === reason)
    await assert.rejects(texts(job.output), hasCode('internal'))
    await guest.idle()
  })

  it('is killed by its signal though nobody reads or awaits it at that moment', async (t) => {
    const reason = new Error('enough')
    const controller = new AbortController()
    let hasEnded: () => void = () => undefined
    const ended = new Promise<void>((resolve) => {
      hasEnded = resolve
    })
    const { agent, guest } = await agentWith(
      t,
      command(async (host) => {
        await host.expect('signal') // sent once the start is known, and from then on nobody waits for anything
        controller.abort(reason)
        await host.closed()
        hasEnded()
      }),
    )
    const job = startJob(async () => agent, { argv: ['x'] }, { signal: controller.signal })
    job.kill('SIGWINCH')
    await ended
    await guest.idle()
    await assert.rejects(job.wait(), (error) => error === reason)
  })

  it('that could not be started says so where it is awaited, and rejects nowhere else', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('exec')
      host.say({ type: 'error', code: 'command-not-found', message: 'no such program' })
    })
    const job = startJob(async () => agent, { argv: ['nope', 'x'] })
    job.kill()
    await assert.rejects(job.collect(), hasCode('command-not-found', /^in the guest: no such program$/))
    await assert.rejects(job.wait(), hasCode('command-not-found'))
    startJob(() => Promise.reject(new Error('no sandbox')), { argv: ['x'] }) // dropped: no unhandled rejection
    await assert.rejects(startJob(() => Promise.reject(new Error('no sandbox')), { argv: ['x'] }).wait(), /no sandbox/)
  })

  it('that the guest goes away from is lost', async (t) => {
    const { agent } = await agentWith(
      t,
      command((host) => void host.socket.end()),
    )
    await assert.rejects(startJob(async () => agent, { argv: ['x'] }).wait(), hasCode('link-lost'))
  })

  it('that the guest only acknowledges again, connection by connection, is lost', async (t) => {
    let connections = 0
    const { agent } = await agentWith(t, async (host) => {
      connections++
      await greet(host, { ...HELLO, capabilities: ['attach'] })
      const frame = await host.next()
      if (frame?.kind === 'message' && frame.message.type === 'attach')
        host.say({ type: 'attached', pid: 7, offset: 0, inputOffset: 0 }, { type: 'ack', offset: 0 })
      else host.say({ type: 'started', pid: 7 })
      host.socket.end()
    })
    const job = startJob(async () => agent, { argv: ['x'] }, { input: 'in' })
    await assert.rejects(job.wait(), hasCode('link-lost'))
    assert.ok(connections < 20, `${connections} connections were made`)
  })

  it('that outlasts its promised end is reported as silence', async (t) => {
    const { agent, guest } = await agentWith(
      t,
      command((host) => host.closed()),
      { answerTimeoutMs: 60 },
    )
    await assert.rejects(
      startJob(async () => agent, { argv: ['x'], timeoutMs: 10 }).wait(),
      hasCode('guest-silent', /within 70 ms/),
    )
    await guest.idle()
  })

  it('with the longest time limit is not cut short by our own', async (t) => {
    const { agent } = await agentWith(
      t,
      command((host) => {
        setTimeout(() => host.say({ type: 'exit', code: 0 }), 50)
      }),
    )
    assert.equal((await startJob(async () => agent, { argv: ['x'], timeoutMs: 2 ** 31 - 1 }).wait()).exitCode, 0)
  })

  it('may be quiet for longer than any answer', async (t) => {
    const { agent } = await agentWith(
      t,
      command((host) => {
        setTimeout(() => host.say({ type: 'exit', code: 0 }), 120)
      }),
      { answerTimeoutMs: 50 },
    )
    assert.equal((await startJob(async () => agent, { argv: ['x'] }).wait()).exitCode, 0)
  })
})

describe('a signal', () => {
  it('reaches the command', async (t) => {
    const { agent } = await agentWith(
      t,
      command(async (host) => {
        const { signal } = await host.expect('signal')
        host.say({ type: 'exit', signal })
      }),
    )
    const job = startJob(async () => agent, { argv: ['x'] })
    job.kill('SIGHUP')
    assert.equal((await job.wait()).signal, 'SIGHUP')
  })

  it('that there is not is refused on the spot', async (t) => {
    const { agent } = await agentWith(
      t,
      command((host) => host.say({ type: 'exit', code: 0 })),
    )
    const job = startJob(async () => agent, { argv: ['x'] })
    assert.throws(() => job.kill('SIGNOT'), hasCode('bad-request', /SIGNOT/))
    assert.equal((await job.wait()).exitCode, 0)
  })

  it('for a command that has ended does not reach the next one on its connection', async (t) => {
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('exec')
      host.say(STARTED, { type: 'exit', code: 0 })
      await host.expect('stat')
      host.say({ type: 'info', file: { name: 'a', type: 'file', size: 0, mode: 0, uid: 0, gid: 0, mtimeMs: 0 } })
    })
    const job = startJob(async () => agent, { argv: ['x'] })
    await job.wait()
    job.kill('SIGKILL')
    await new Promise((resolve) => setImmediate(resolve))
    await statFile(agent, '/a')
    assert.equal(guest.connections, 1)
  })
})

describe('a terminal', () => {
  const pty = { cols: 100, rows: 30 }

  it('is asked for with its size, and resized while the command runs', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host)
      const request = await host.expect('exec')
      assert.deepEqual({ pty: request.pty, stdin: request.stdin }, { pty, stdin: undefined })
      host.say(STARTED)
      const { cols, rows } = await host.expect('resize')
      host.bulk('stdout', `${cols} × ${rows}`)
      host.say({ type: 'exit', code: 0 })
      await host.expect('exec') // and not the second resize
      host.say(STARTED, { type: 'exit', code: 0 })
    })
    const job = startJob(async () => agent, { argv: ['x'], pty })
    job.resize(132, 50)
    assert.deepEqual(await texts(job.output), ['stdout:132 × 50'])
    job.resize(80, 24)
    await startJob(async () => agent, { argv: ['x'] }).wait()
  })

  it('has sides of whole characters, and not more than the protocol lets it', async (t) => {
    const { agent } = await agentWith(
      t,
      command((host) => host.say({ type: 'exit', code: 0 })),
    )
    const job = startJob(async () => agent, { argv: ['x'], pty })
    for (const [cols, rows] of [
      [0, 24],
      [80, 10_001],
      [80.5, 24],
      [80, Number.NaN],
    ] as const)
      assert.throws(() => job.resize(cols, rows), hasCode('bad-request', /1 to 10000 each/))
    assert.equal((await job.wait()).exitCode, 0)
    await assert.rejects(
      startJob(async () => agent, { argv: ['x'], pty: { cols: 0, rows: 24 } }).wait(),
      hasCode('bad-request', /terminal 0 × 24/),
    )
  })

  it('is not asked for from an agent that would ignore it', async (t) => {
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host, { ...HELLO, capabilities: ['resume'] })
      assert.equal(await host.next(), undefined)
    })
    await assert.rejects(
      startJob(async () => agent, { argv: ['x'], pty }).wait(),
      hasCode('agent-incompatible', /stand-in has no terminals/),
    )
    await guest.idle()
  })

  it('that there is not cannot be resized: the command fails by it', async (t) => {
    const { agent, guest } = await agentWith(
      t,
      command((host) => host.closed()),
    )
    const job = startJob(async () => agent, { argv: ['x'] })
    job.resize(80, 24)
    await assert.rejects(job.wait(), hasCode('bad-request', /a command that has none/))
    await guest.idle()
  })
})

describe('standard input', () => {
  it('is sent with never more than the window unacknowledged, then its end', async (t) => {
    const total = 1_500_000
    const { agent } = await agentWith(
      t,
      command(async (host) => {
        let received = 0
        let acknowledged = 0
        for (;;) {
          const frame = await host.next()
          if (frame?.kind === 'data') {
            received += frame.data.length
            assert.ok(received - acknowledged <= STDIN_WINDOW_BYTES, `${received - acknowledged} unacknowledged`)
            // Only once the host can send no more, so that a host without a window would be caught.
            if (received - acknowledged === STDIN_WINDOW_BYTES || received === total) {
              acknowledged = received
              host.say({ type: 'ack', offset: acknowledged })
            }
            continue
          }
          assert.ok(frame?.kind === 'message' && frame.message.type === 'eof')
          host.bulk('stdout', String(received))
          host.say({ type: 'exit', code: 0 })
          return
        }
      }),
    )
    async function* input(): AsyncGenerator<Uint8Array> {
      for (let sent = 0; sent < total; sent += 150_000) yield Buffer.alloc(150_000)
    }
    const { stdout } = await startJob(async () => agent, { argv: ['cat'] }, { input: input() }).collect()
    assert.equal(stdout, String(total))
  })

  it('stops at the window when nothing is acknowledged, and a signal still passes', async (t) => {
    const { agent } = await agentWith(
      t,
      command(async (host) => {
        let received = 0
        for (;;) {
          const frame = await host.next()
          if (frame?.kind === 'data') {
            received += frame.data.length
            if (received === STDIN_WINDOW_BYTES) job.kill('SIGTERM')
            continue
          }
          assert.ok(frame?.kind === 'message' && frame.message.type === 'signal')
          host.bulk('stdout', String(received))
          host.say({ type: 'exit', signal: frame.message.signal })
          return
        }
      }),
    )
    const job = startJob(async () => agent, { argv: ['sleep'] }, { input: 'x'.repeat(1_000_000) })
    const { stdout, signal } = await job.collect()
    assert.deepEqual({ stdout, signal }, { stdout: String(STDIN_WINDOW_BYTES), signal: 'SIGTERM' })
  })

  it('that is empty is only an end', async (t) => {
    const { agent } = await agentWith(
      t,
      command(async (host) => {
        await host.expect('eof')
        host.say({ type: 'exit', code: 0 })
      }),
    )
    await startJob(async () => agent, { argv: ['cat'] }, { input: '' }).wait()
  })

  it('acknowledged beyond what was sent, or backwards, is a violation', async (t) => {
    for (const offsets of [[11], [10, 9]]) {
      const { agent, guest } = await agentWith(
        t,
        command(async (host) => {
          for (let received = 0; received < 10; ) {
            const frame = await host.next()
            if (frame?.kind === 'data') received += frame.data.length
          }
          host.say(...offsets.map((offset) => ({ type: 'ack' as const, offset })))
          await host.closed()
        }),
      )
      const job = startJob(async () => agent, { argv: ['cat'] }, { input: '0123456789' })
      await assert.rejects(job.wait(), hasCode('guest-protocol', /acknowledged input that was not sent/))
      await guest.idle()
    }
  })

  it('that nobody sends must not be acknowledged at all', async (t) => {
    const { agent } = await agentWith(
      t,
      command(async (host) => {
        host.say({ type: 'ack', offset: 0 })
        await host.closed()
      }),
    )
    await assert.rejects(
      startJob(async () => agent, { argv: ['x'] }).wait(),
      hasCode('guest-protocol', /ack is out of place/),
    )
  })

  it('that waits for a key does not hold up the end of the command', async (t) => {
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      for (;;) {
        await host.expect('exec')
        host.say(STARTED, { type: 'exit', code: 0 })
      }
    })
    await startJob(async () => agent, { argv: ['true'] }, { input: forever() }).wait()
    await startJob(async () => agent, { argv: ['true'] }).wait()
    assert.equal(guest.connections, 1)
  })

  it('that arrives after the end is not sent into the next command', async (t) => {
    let give: () => void = () => undefined
    const given = new Promise<void>((resolve) => {
      give = resolve
    })
    async function* late(): AsyncGenerator<Uint8Array> {
      await given
      yield Buffer.from('late')
    }
    const { agent } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('exec')
      host.say(STARTED, { type: 'exit', code: 0 })
      await host.expect('exec')
      host.say(STARTED)
      const { signal } = await host.expect('signal') // and nothing before it
      host.say({ type: 'exit', signal })
    })
    await startJob(async () => agent, { argv: ['true'] }, { input: late() }).wait()
    const second = startJob(async () => agent, { argv: ['sleep'] })
    give()
    await new Promise((resolve) => setImmediate(resolve))
    second.kill()
    await second.wait()
  })

  it('that fails ends the command with its reason', async (t) => {
    const { agent, guest } = await agentWith(
      t,
      command((host) => host.closed()),
    )
    const cause = new Error('the tape is torn')
    async function* torn(): AsyncGenerator<Uint8Array> {
      yield Buffer.from('some')
      throw cause
    }
    await assert.rejects(startJob(async () => agent, { argv: ['cat'] }, { input: torn() }).wait(), (error) => {
      assert.ok(hasCode('cancelled', /the tape is torn/)(error))
      assert.ok(error instanceof Error && error.cause === cause)
      return true
    })
    await guest.idle()
  })
})

it('a hello that hides a command in the same chunk is still one connection', async (t) => {
  const { agent } = await agentWith(t, async (host) => {
    await host.expect('hello')
    const hello = { type: 'hello', protocol: 1, agent: 'a', bootId: 'b', capabilities: [], checksums: ['md5'] }
    host.raw(messageFrame(hello), messageFrame(STARTED), messageFrame({ type: 'exit', code: 7 }))
    await host.closed()
  })
  assert.equal((await startJob(async () => agent, { argv: ['x'] }).wait()).exitCode, 7)
})
