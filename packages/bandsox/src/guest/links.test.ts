import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { realAgent } from '../testing/real-agent.js'
import { askLinks } from './links.js'
import { agentWith, greet, HELLO, messageFrame } from './testing/stand-in-agent.js'

describe('the links of a guest', () => {
  it('are what its agent says of them', async (t) => {
    const links = await askLinks(await realAgent(t))
    assert.equal(typeof links.vsock.kernel, 'boolean')
    assert.equal(typeof links.vsock.device, 'boolean')
    assert.equal(links.vsock.port, undefined)
    assert.deepEqual(links.serial, [])
  })

  it('are not asked of an agent that does not know the question', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host)
      await host.closed()
    })
    await assert.rejects(askLinks(agent), hasCode('agent-incompatible'))
  })

  it('are refused in a shape that they must not have', async (t) => {
    const { agent } = await agentWith(t, async (host) => {
      await greet(host, { ...HELLO, capabilities: ['links'] })
      await host.expect('links')
      const serial = Array.from({ length: 9 }, () => ({ name: 'x', kind: 'port', up: true }))
      host.raw(messageFrame({ type: 'links', vsock: { kernel: true, device: true }, serial }))
      await host.closed()
    })
    await assert.rejects(askLinks(agent), hasCode('guest-protocol'))
  })
})
