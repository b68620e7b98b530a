import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir } from 'node:fs/promises'
import { createServer } from 'node:net'
import path from 'node:path'
import { describe, it } from 'node:test'
import { BandSoxError } from '@bandsox/sdk'
import type { Link } from '../link/link.js'
import { socketLink } from '../link/socket-link.js'
import { openDescriptors } from '../testing/descriptors.js'
import { hasCode } from '../testing/errors.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { MAX_MESSAGE_BYTES } from '../wire/frame.js'
import { Agent } from './agent.js'
import { statFile } from './inspect.js'
import { startJob } from './job.js'
import { agentWith, greet, HELLO, type HostPeer, messageFrame, StandInAgent } from './testing/stand-in-agent.js'

const FILE = { name: 'a', type: 'file', size: 1, mode: 0o644, uid: 0, gid: 0, mtimeMs: 0 } as const

/** Answers every `stat`, until the host closes. */
async function answerStats(host: HostPeer): Promise<void> {
  await greet(host)
  for (;;) {
    await host.expect('stat')
    host.say({ type: 'info', file: FILE })
  }
}

const refusing = (code: 'link-refused' | 'internal'): Link => ({
  kind: 'serial',
  open: () => Promise.reject(new BandSoxError(code, 'nothing here')),
})

describe('an agent', () => {
  it('is asked again on the same connection after a success', async (t) => {
    const { agent, guest } = await agentWith(t, answerStats)
    for (let round = 0; round < 5; round++) await statFile(agent, '/a')
    assert.equal(guest.connections, 1)
  })

  it('is asked on a new connection after a failure, and the old one is closed', async (t) => {
    let firstClosed: Promise<void> | undefined
    const { agent, guest } = await agentWith(t, async (host) => {
      if (host.number > 1) return answerStats(host)
      await greet(host)
      await host.expect('stat')
      host.say({ type: 'error', code: 'not-found', message: 'no such file' })
      firstClosed = host.closed()
      await firstClosed
    })
    await assert.rejects(statFile(agent, '/a'), hasCode('file-not-found', /^in the guest: no such file$/))
    await firstClosed
    await statFile(agent, '/a')
    assert.equal(guest.connections, 2)
  })

  it('is not asked on an idle connection that it has closed', async (t) => {
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('stat')
      host.say({ type: 'info', file: FILE })
      if (host.number > 1) return
      host.socket.end()
    })
    await statFile(agent, '/a')
    await guest.idle() // our end was closed as well, though nobody waited on it
    await statFile(agent, '/a')
    assert.equal(guest.connections, 2)
  })

  it('that speaks while it is idle is found out at the next operation', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('stat')
      host.say({ type: 'info', file: FILE }, { type: 'listed', count: 0 })
      await host.closed()
    })
    await statFile(agent, '/a')
    await assert.rejects(statFile(agent, '/a'), hasCode('guest-protocol', /listed is out of place/))
  })

  it('serves many operations side by side, and keeps only a few connections', async (t) => {
    const { agent, guest } = await agentWith(t, answerStats)
    await Promise.all(Array.from({ length: 20 }, () => statFile(agent, '/a')))
    await statFile(agent, '/a')
    assert.ok(guest.connections <= 20)
    while (guest.open > 4) await new Promise((resolve) => setImmediate(resolve)) // their closing is on its way
    agent.close()
    await guest.idle()
  })

  it('is reached by the second link when the first refuses', async (t) => {
    const guest = await StandInAgent.listen(t, answerStats)
    const agent = new Agent([refusing('link-refused'), guest.link])
    t.after(() => agent.close())
    const connection = await agent.acquire()
    assert.equal(connection.link, 'vsock')
    agent.release(connection)
  })

  it('without any link is unreachable', async () => {
    await assert.rejects(statFile(new Agent([]), '/a'), hasCode('agent-unreachable'))
  })

  it('that greets with another protocol, or not at all, is told apart', async (t) => {
    const other = await agentWith(t, (host) => greet(host, { ...HELLO, protocol: 2 }))
    await assert.rejects(statFile(other.agent, '/a'), hasCode('agent-incompatible', /chose protocol 2/))
    const unsupported = await agentWith(t, async (host) => {
      await host.expect('hello')
      host.say({ type: 'error', code: 'protocol-unsupported', message: 'only 9' })
    })
    await assert.rejects(statFile(unsupported.agent, '/a'), hasCode('agent-incompatible'))
    const mute = await agentWith(t, (host) => host.closed(), { answerTimeoutMs: 60 })
    await assert.rejects(statFile(mute.agent, '/a'), hasCode('guest-silent', /within 60 ms/))
    await mute.guest.idle()
  })

  it('that accepts a connection and never shakes hands is silent', async (t) => {
    const folder = await temporaryFolder(t)
    const file = path.join(folder, 's')
    const server = createServer((socket) => socket.resume().on('error', () => undefined)).listen(file)
    await once(server, 'listening')
    t.after(() => void server.close())
    const agent = new Agent([socketLink('vsock', file, 1)], { answerTimeoutMs: 50 })
    await assert.rejects(statFile(agent, '/a'), hasCode('guest-silent', /handshake/))
  })

  it('that breaks the protocol is named by the violation, and dropped', async (t) => {
    const cases: [string, (host: HostPeer) => void][] = [
      ['frame-kind-unknown', (host) => host.raw(Buffer.from('HTTP/1.1 400'))],
      ['frame-too-large', (host) => host.raw(Buffer.of(1, 0xff, 0xff, 0xff, 0xff))],
      ['frame-empty', (host) => host.raw(Buffer.of(2, 0, 0, 0, 0))],
      ['message-not-json', (host) => host.raw(Buffer.of(1, 0, 0, 0, 2), Buffer.from('{x'))],
      ['message-too-deep', (host) => host.raw(Buffer.of(1, 0, 0, 0, 40), Buffer.from('['.repeat(40)))],
      ['message-invalid', (host) => host.raw(messageFrame({ type: 'info', file: { ...FILE, mode: 0o10000 } }))],
      ['message-type-unknown', (host) => host.raw(messageFrame({ type: 'stat', path: '/a' }))],
      ['out of place', (host) => host.say({ type: 'pong', uptimeMs: 1 })],
      ['out of place', (host) => host.bulk('stdout', 'hello')],
    ]
    for (const [name, attack] of cases) {
      const { agent, guest } = await agentWith(t, async (host) => {
        await greet(host)
        await host.expect('stat')
        attack(host)
        await host.closed()
      })
      await assert.rejects(statFile(agent, '/a'), hasCode('guest-protocol', new RegExp(name)), name)
      await guest.idle()
    }
  })

  it('whose stream ends in the middle of a frame was lost: so it looks when a VM has died', async (t) => {
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('stat')
      host.socket.end(messageFrame({ type: 'info', file: FILE }).subarray(0, -3))
      await host.closed()
    })
    await assert.rejects(statFile(agent, '/a'), hasCode('link-lost', /ended in the middle: frame-truncated/))
    await guest.idle()
  })

  it('that sends its answer a byte now and then has not answered', async (t) => {
    const { agent, guest } = await agentWith(
      t,
      async (host) => {
        await greet(host)
        await host.expect('stat')
        const answer = messageFrame({ type: 'info', file: FILE })
        let sent = 0
        const timer = setInterval(() => host.raw(answer.subarray(sent, ++sent)), 15)
        await host.closed()
        clearInterval(timer)
      },
      { answerTimeoutMs: 80 },
    )
    await assert.rejects(statFile(agent, '/a'), hasCode('guest-silent', /within 80 ms/))
    await guest.idle()
  })

  it('is tried once more when something was mended after a refusal', async (t) => {
    const guest = await StandInAgent.listen(t, answerStats)
    let isMended = false
    const link: Link = {
      kind: 'vsock',
      open: (signal) => (isMended ? guest.link.open(signal) : refusing('link-refused').open(signal)),
    }
    const agent = new Agent([link])
    t.after(() => agent.close())
    agent.onLost(async () => 'unchanged')
    await assert.rejects(statFile(agent, '/a'), hasCode('link-refused'))
    agent.onLost(async () => {
      isMended = true
      return 'mended'
    })
    await statFile(agent, '/a')
  })

  it('is tried as often as it takes while the links are held back for a moment', async (t) => {
    const guest = await StandInAgent.listen(t, answerStats)
    let looks = 0
    const isHeld = () => looks < 20
    const link: Link = {
      kind: 'vsock',
      open: (signal) => (isHeld() ? refusing('link-refused').open(signal) : guest.link.open(signal)),
    }
    const agent = new Agent([link])
    t.after(() => agent.close())
    agent.onLost(async () => {
      looks++
      return isHeld() ? 'held' : 'unchanged'
    })
    await assert.rejects(
      statFile(agent, '/a'),
      hasCode('link-refused'),
      'nothing holds it any more, and it was refused',
    )
    await statFile(agent, '/a')
  })

  it('that closes instead of answering is lost, with no word of a violation', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('stat')
      host.socket.end()
    })
    await assert.rejects(statFile(agent, '/a'), hasCode('link-lost', /closed the connection/))
  })

  it('closes what is in use with the reason that it was given', async (t) => {
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('stat')
      agent.close(new BandSoxError('link-lost', 'the sandbox was paused'))
      await host.closed()
    })
    await assert.rejects(statFile(agent, '/a'), hasCode('link-lost', /^the sandbox was paused$/))
    await guest.idle()
    await assert.rejects(statFile(agent, '/a'), hasCode('link-lost'))
  })

  it('is not asked what no frame could hold', async (t) => {
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.closed()
    })
    const shell = 'x'.repeat(MAX_MESSAGE_BYTES)
    await assert.rejects(startJob(async () => agent, { shell }).wait(), hasCode('bad-request', /exceeds/))
    await guest.idle()
  })
})

describe('an aborted operation', () => {
  it('rejects with the reason, closes its connection, and leaves no listener on the signal', async (t) => {
    const reason = new Error('enough')
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('stat')
      controller.abort(reason)
      await host.closed()
    })
    const controller = new AbortController()
    await assert.rejects(statFile(agent, '/a', { signal: controller.signal }), (error) => error === reason)
    await guest.idle()
    await assert.rejects(statFile(agent, '/a', { signal: AbortSignal.abort(reason) }), (error) => error === reason)
    assert.equal(guest.connections, 1)
  })

  it('holds no descriptor', async (t) => {
    const { agent, guest } = await agentWith(t, answerStats)
    await statFile(agent, '/a')
    const before = await openDescriptors()
    for (let round = 0; round < 20; round++) {
      const controller = new AbortController()
      const asked = statFile(agent, '/a', { signal: controller.signal })
      controller.abort(new Error('enough'))
      await assert.rejects(asked)
    }
    agent.close()
    await guest.idle()
    assert.ok((await openDescriptors()).length <= before.length)
  })
})

describe('waiting for an agent', () => {
  it('tries until it listens', async (t) => {
    const folder = await temporaryFolder(t)
    const late = path.join(folder, 'late')
    await mkdir(late)
    let tries = 0
    const guest = await StandInAgent.listen(t, answerStats)
    const link: Link = {
      kind: 'vsock',
      open: (signal) =>
        ++tries < 4 ? socketLink('vsock', path.join(late, 'no.sock'), 1).open(signal) : guest.link.open(signal),
    }
    const agent = new Agent([link])
    t.after(() => agent.close())
    assert.deepEqual(await agent.waitUntilReady({ timeoutMs: 5_000 }), HELLO)
    await statFile(agent, '/a')
    assert.equal(guest.connections, 1) // the connection that it answered on is used
  })

  it('ends after its time with the last reason', async () => {
    const agent = new Agent([refusing('link-refused')])
    await assert.rejects(
      agent.waitUntilReady({ timeoutMs: 70 }),
      hasCode('agent-unreachable', /no hello from the agent: nothing here/),
    )
  })

  it('ends at once for what no waiting cures', async () => {
    await assert.rejects(new Agent([refusing('internal')]).waitUntilReady({ timeoutMs: 60_000 }), hasCode('internal'))
  })

  it('ends with the reason of its signal, also between two tries', async () => {
    const controller = new AbortController()
    const reason = new BandSoxError('boot-failed', 'the VMM exited')
    let tries = 0
    const link: Link = {
      kind: 'vsock',
      open: () => {
        if (++tries === 3) queueMicrotask(() => controller.abort(reason))
        return Promise.reject(new BandSoxError('link-refused', 'not yet'))
      },
    }
    await assert.rejects(
      new Agent([link]).waitUntilReady({ timeoutMs: 60_000, signal: controller.signal }),
      (error) => error === reason,
    )
  })
})
