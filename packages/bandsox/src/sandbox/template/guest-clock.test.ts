import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { agentWith, greet, HELLO } from '../../guest/testing/stand-in-agent.js'
import { hasCode } from '../../testing/errors.js'
import { requireSteadyClock } from './guest-clock.js'

describe('a guest’s clock', () => {
  for (const [rate, isSteady] of [
    [1, true],
    [1.005, true],
    [1.05, false],
    [2.6, false],
    [0, false],
  ] as const)
    it(`that runs ${rate} times as fast as the host’s is ${isSteady ? 'trusted' : 'not'}`, async (t) => {
      const { agent } = await agentWith(t, async (host) => {
        await greet(host, HELLO)
        const startedAt = performance.now()
        for (;;) {
          await host.expect('ping')
          host.say({ type: 'pong', uptimeMs: Math.round(5_000 + rate * (performance.now() - startedAt)) })
        }
      })
      const looked = requireSteadyClock(agent)
      await (isSteady ? looked : assert.rejects(looked, hasCode('boot-failed', /times as fast as the host/)))
    })
})
