/** Which link an operation takes, and when it takes another. */
import assert from 'node:assert/strict'
import type { Socket } from 'node:net'
import { describe, it } from 'node:test'
import { BandSoxError, type LinkKind } from '@bandsox/sdk'
import type { Link } from '../link/link.js'
import { hasCode } from '../testing/errors.js'
import type { TestScope } from '../testing/temporary-folder.js'
import { Agent } from './agent.js'
import { Ladder } from './ladder.js'
import { greet, HELLO, StandInAgent } from './testing/stand-in-agent.js'

/** A link whose behaviour a test changes as it goes along. */
class TestLink implements Link {
  readonly kind: LinkKind
  /** When each try began, and when it was given up or failed. */
  readonly tries: { from: number; to: number | undefined }[] = []
  behaviour: 'works' | 'refuses' | 'hangs' | 'breaks the protocol' = 'works'
  readonly #guest: StandInAgent
  readonly #hostile: StandInAgent

  private constructor(kind: LinkKind, guest: StandInAgent, hostile: StandInAgent) {
    this.kind = kind
    this.#guest = guest
    this.#hostile = hostile
  }

  static async make(t: TestScope, kind: LinkKind): Promise<TestLink> {
    const guest = await StandInAgent.listen(t, async (host) => {
      await greet(host)
      await host.closed()
    })
    const hostile = await StandInAgent.listen(t, async (host) => {
      await host.expect('hello')
      host.say({ type: 'listed', count: 0 })
      await host.closed()
    })
    return new TestLink(kind, guest, hostile)
  }

  async open(signal?: AbortSignal): Promise<Socket> {
    const attempt = { from: performance.now(), to: undefined as number | undefined }
    this.tries.push(attempt)
    try {
      if (this.behaviour === 'works') return await this.#guest.link.open(signal)
      if (this.behaviour === 'breaks the protocol') return await this.#hostile.link.open(signal)
      if (this.behaviour === 'refuses') throw new BandSoxError('link-refused', 'nobody listens')
      return await new Promise((_, reject) => signal?.addEventListener('abort', () => reject(signal.reason)))
    } finally {
      attempt.to = performance.now()
    }
  }

  /** From the first try to the end of the last. */
  get spentMs(): number {
    return (this.tries.at(-1)?.to ?? Number.NaN) - (this.tries[0]?.from ?? Number.NaN)
  }
}

async function twoLinks(t: TestScope) {
  const vsock = await TestLink.make(t, 'vsock')
  const serial = await TestLink.make(t, 'serial')
  const told: string[] = []
  const ladder = new Ladder([vsock, serial], { log: (text) => void told.push(text) })
  t.after(() => ladder.close())
  const connect = async (only?: LinkKind) => {
    const connection = await ladder.connect({ only })
    t.after(() => connection.close())
    return connection.link
  }
  return { vsock, serial, ladder, told, connect }
}

/** Waits for what a probe in the background finds. */
async function until(isSo: () => boolean): Promise<void> {
  while (!isSo()) await new Promise((resolve) => setTimeout(resolve, 5))
}

describe('the ladder', () => {
  it('takes the first link while it works, and touches no other', async (t) => {
    const { serial, connect } = await twoLinks(t)
    for (let round = 0; round < 3; round++) assert.equal(await connect(), 'vsock')
    assert.equal(serial.tries.length, 0)
  })

  it('tries a link that refuses three times, then takes the next, and says why', async (t) => {
    const { vsock, connect, told } = await twoLinks(t)
    vsock.behaviour = 'refuses'
    assert.equal(await connect(), 'serial')
    assert.equal(vsock.tries.length, 3)
    assert.deepEqual(told, ['vsock failed (nobody listens): going on over serial'])
  })

  it('gives a link that never answers 1.5 s in three tries, and 0.3 s once it was seen to work', async (t) => {
    const { vsock, connect, ladder } = await twoLinks(t)
    vsock.behaviour = 'hangs'
    assert.equal(await connect(), 'serial')
    assert.equal(vsock.tries.length, 3)
    assert.ok(vsock.spentMs > 1_400 && vsock.spentMs < 4_000, `${vsock.spentMs} ms`)

    ladder.forget()
    vsock.behaviour = 'works'
    assert.equal(await connect(), 'vsock')
    vsock.tries.length = 0
    vsock.behaviour = 'hangs'
    assert.equal(await connect(), 'serial')
    assert.equal(vsock.tries.length, 3)
    assert.ok(vsock.spentMs > 250 && vsock.spentMs < 1_300, `${vsock.spentMs} ms`)
  })

  it('does not wait for a link that has just failed, looks at it meanwhile, and takes it back when it works', async (t) => {
    const { vsock, connect, told, ladder } = await twoLinks(t)
    vsock.behaviour = 'refuses'
    await connect()
    vsock.tries.length = 0
    assert.equal(await connect(), 'serial')
    assert.ok(vsock.tries.length <= 1) // the look, if it was due
    vsock.behaviour = 'works'
    await until(() => ladder.hasBetterThan('serial'))
    assert.equal(await connect(), 'vsock')
    assert.equal(told.at(-1), 'vsock works again')
  })

  it('still tries a link that has failed when the others fail as well', async (t) => {
    const { vsock, serial, connect } = await twoLinks(t)
    vsock.behaviour = 'refuses'
    await connect()
    vsock.behaviour = 'works'
    serial.behaviour = 'refuses'
    assert.equal(await connect(), 'vsock')
  })

  it('is not moved by one connection that broke: what is open stays, and the link is back with its next answer', async (t) => {
    const { ladder, connect } = await twoLinks(t)
    const open = await ladder.connect()
    ladder.broke('vsock', new BandSoxError('link-lost', 'cut'))
    assert.ok(open.isOpen)
    open.close()
    await until(() => ladder.hasBetterThan('serial'))
    assert.equal(await connect(), 'vsock')
  })

  it('does not try elsewhere what no other link would cure', async (t) => {
    const { vsock, serial, connect } = await twoLinks(t)
    vsock.behaviour = 'breaks the protocol'
    await assert.rejects(connect(), hasCode('guest-protocol'))
    assert.equal(serial.tries.length, 0)
  })

  it('fails by the last link when none works', async (t) => {
    const { vsock, serial, connect } = await twoLinks(t)
    vsock.behaviour = serial.behaviour = 'refuses'
    await assert.rejects(connect(), hasCode('link-refused', /nobody listens/))
    assert.equal(vsock.tries.length, 3)
    assert.equal(serial.tries.length, 1)
  })

  it('keeps to one link when told to', async (t) => {
    const { vsock, serial, connect } = await twoLinks(t)
    assert.equal(await connect('serial'), 'serial')
    assert.equal(vsock.tries.length, 0)
    vsock.behaviour = 'refuses'
    await assert.rejects(connect('vsock'), hasCode('link-refused'))
    assert.equal(serial.tries.length, 1)
  })

  it('ends with the reason of its signal, in the middle of a try', async (t) => {
    const { vsock, serial, ladder } = await twoLinks(t)
    vsock.behaviour = 'hangs'
    const controller = new AbortController()
    const reason = new Error('enough')
    const connecting = ladder.connect({ signal: controller.signal })
    controller.abort(reason)
    await assert.rejects(connecting, (error) => error === reason)
    assert.equal(serial.tries.length, 0)
  })
})

describe('compatibility with vsock', () => {
  it('is there for a machine that has it', async (t) => {
    const vsock = await TestLink.make(t, 'vsock')
    const agent = new Agent([vsock])
    t.after(() => agent.close())
    const connection = await agent.acquire({ only: 'vsock' })
    assert.equal(connection.link, 'vsock')
    agent.discard(connection)
  })

  it('is missed by one without: the sentence says so, and names the guide', async (t) => {
    const serial = await TestLink.make(t, 'serial')
    const agent = new Agent([serial])
    t.after(() => agent.close())
    await assert.rejects(
      agent.acquire({ only: 'vsock' }),
      hasCode('vsock-unavailable', /requires vsock support.*docs\/migration\.md/),
    )
    assert.equal(serial.tries.length, 0)
  })
})

describe('an operation whose connection breaks', () => {
  it('is given up when the machine is gone, with what broke it', async (t) => {
    const guest = await StandInAgent.listen(t, async (host) => {
      await greet(host, { ...HELLO, capabilities: ['resume'] })
      await host.expect('download')
      host.socket.destroy()
    })
    const agent = new Agent([guest.link])
    t.after(() => agent.close())
    let asked = 0
    agent.onLost(async () => {
      asked++
      return 'gone'
    })
    const operation = {
      async run(connection: Awaited<ReturnType<Agent['acquire']>>) {
        connection.send({ type: 'download', path: '/f', checksum: 'md5' })
        await connection.receiveMessage('ready')
      },
      canGoOn: () => true,
      progress: () => 0,
    }
    await assert.rejects(agent.useUntilDone(operation), hasCode('link-lost', /closed the connection|broke/))
    assert.deepEqual([asked, guest.connections], [1, 1])
  })

  it('is given up after a number of connections on which it got no further', async (t) => {
    const guest = await StandInAgent.listen(t, async (host) => {
      await greet(host)
      host.socket.destroy()
    })
    const agent = new Agent([guest.link])
    t.after(() => agent.close())
    const operation = {
      run: async (connection: Awaited<ReturnType<Agent['acquire']>>) => void (await connection.receive()),
      canGoOn: () => true,
      progress: () => 0,
    }
    await assert.rejects(agent.useUntilDone(operation), hasCode('link-lost'))
    assert.ok(guest.connections > 3 && guest.connections < 12, `${guest.connections}`)
  })

  it('does not go on with a guest that was started anew', async (t) => {
    const guest = await StandInAgent.listen(t, async (host) => {
      await greet(host, { ...HELLO, bootId: `boot-${host.number}` })
      if (host.number === 1) host.socket.destroy()
      else await host.closed()
    })
    const agent = new Agent([guest.link])
    t.after(() => agent.close())
    const operation = {
      run: async (connection: Awaited<ReturnType<Agent['acquire']>>) => void (await connection.receive()),
      canGoOn: () => true,
      progress: () => 0,
    }
    await assert.rejects(agent.useUntilDone(operation), hasCode('link-lost', /started anew/))
  })

  it('waits for a machine that is paused, and goes on when it runs', async (t) => {
    const guest = await StandInAgent.listen(t, async (host) => {
      await greet(host)
      if (host.number > 1) host.say({ type: 'pong', uptimeMs: 7 })
      await host.closed()
    })
    const agent = new Agent([guest.link])
    t.after(() => agent.close())
    let resume: () => void = () => undefined
    const running = new Promise<void>((resolve) => {
      resume = resolve
    })
    let isPaused: () => void = () => undefined
    const paused = new Promise<void>((resolve) => {
      isPaused = resolve
    })
    agent.onLost(async () => {
      isPaused()
      await running
      return 'mended'
    })
    let begun: () => void = () => undefined
    const hasBegun = new Promise<void>((resolve) => {
      begun = resolve
    })
    const answer = agent.useUntilDone({
      async run(connection) {
        begun()
        return await connection.receiveMessage('pong')
      },
      canGoOn: () => true,
      progress: () => 0,
    })
    await hasBegun
    agent.quiesce(new BandSoxError('link-lost', 'it was paused'))
    await paused
    assert.equal(guest.connections, 1)
    resume()
    assert.equal((await answer).uptimeMs, 7)
  })
})
