import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import type { WireEntry } from '../wire/message.js'
import { listFolder, statFile } from './inspect.js'
import { agentWith, greet, messageFrame } from './testing/stand-in-agent.js'

const entry = (over: Partial<WireEntry> = {}): WireEntry => ({
  name: 'a',
  type: 'file',
  size: 3,
  mode: 0o644,
  uid: 1,
  gid: 2,
  mtimeMs: 1_000,
  ...over,
})

describe('a look at a file', () => {
  it('asks for what was asked, and has the shape of the library', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host)
      assert.deepEqual(await host.expect('stat'), { type: 'stat', path: '/b', followLinks: false })
      host.say({ type: 'info', file: entry({ name: 'b', type: 'symlink', target: 'c', rawName: '/w==' }) })
      assert.equal((await host.expect('stat')).followLinks, true)
      host.say({ type: 'info', file: entry() })
    })
    const link = { name: 'b', rawName: '/w==', type: 'symlink', mode: 0o644, uid: 1, gid: 2, target: 'c' }
    const times = { sizeBytes: 3, modifiedAt: '1970-01-01T00:00:01.000Z' }
    assert.deepEqual(await statFile(agent, '/b', { followLinks: false }), { ...link, ...times })
    assert.equal((await statFile(agent, '/a')).name, 'a')
  })

  it('bears any time that a file may claim', async (t) => {
    const times = [Number.MAX_SAFE_INTEGER, Number.MIN_SAFE_INTEGER, -1]
    const { agent } = await agentWith(t, async (host) => {
      await greet(host)
      for (const mtimeMs of times) {
        await host.expect('stat')
        host.say({ type: 'info', file: entry({ mtimeMs }) })
      }
    })
    const seen: string[] = []
    for (const _ of times) seen.push((await statFile(agent, '/a')).modifiedAt)
    assert.deepEqual(seen, ['+275760-09-13T00:00:00.000Z', '-271821-04-20T00:00:00.000Z', '1969-12-31T23:59:59.999Z'])
  })
})

describe('a listing', () => {
  it('yields entries as they come, and hands its connection back', async (t) => {
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      for (;;) {
        await host.expect('list')
        host.say(
          { type: 'entries', files: [entry({ name: 'x' }), entry({ name: 'y' })] },
          { type: 'entries', files: [entry({ name: 'z' })] },
        )
        host.say({ type: 'listed', count: 3 })
      }
    })
    for (let round = 0; round < 2; round++) {
      const names: string[] = []
      for await (const { name } of listFolder(agent, '/')) names.push(name)
      assert.deepEqual(names, ['x', 'y', 'z'])
    }
    assert.equal(guest.connections, 1)
  })

  it('of a folder that is not there says so', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('list')
      host.say({ type: 'error', code: 'not-a-directory', message: 'it is a file' })
    })
    await assert.rejects(listFolder(agent, '/a').next(), hasCode('file-error', /^in the guest: it is a file$/))
  })

  it('that counts wrong is a violation', async (t) => {
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('list')
      host.say({ type: 'entries', files: [entry()] }, { type: 'listed', count: 2 })
      await host.closed()
    })
    const entries = listFolder(agent, '/')
    await entries.next()
    await assert.rejects(entries.next(), hasCode('guest-protocol', /it listed 1 entries and says 2/))
    await guest.idle()
  })

  it('without end takes no memory, and ends with the loop', async (t) => {
    const message = messageFrame({
      type: 'entries',
      files: Array.from({ length: 200 }, () => entry({ name: 'n'.repeat(255) })),
    })
    let sent = 0
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('list')
      while (await host.paced(message)) sent += message.length
    })
    let count = 0
    for await (const _ of listFolder(agent, '/')) if (++count === 20_000) break
    await guest.idle()
    // The guest got no further ahead than socket buffers reach.
    assert.ok(sent < (count / 200) * message.length + 4_000_000, `${sent} bytes sent for ${count} entries`)
  })

  it('that is aborted rejects with the reason and closes', async (t) => {
    const reason = new Error('enough')
    const controller = new AbortController()
    const { agent, guest } = await agentWith(t, async (host) => {
      await greet(host)
      await host.expect('list')
      host.say({ type: 'entries', files: [entry()] })
      await host.closed()
    })
    const entries = listFolder(agent, '/', { signal: controller.signal })
    await entries.next()
    controller.abort(reason)
    await assert.rejects(entries.next(), (error) => error === reason)
    await guest.idle()
  })
})
