import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { FirecrackerFault, FirecrackerNoAnswer } from './fault.js'

const PUT = { method: 'PUT', path: '/vm' } as const

describe("faults of Firecracker's API", () => {
  it('say what may have come about, where nothing tells', () => {
    const cases: [FirecrackerNoAnswer, boolean][] = [
      [new FirecrackerNoAnswer('silent', PUT, 'why'), true],
      [new FirecrackerNoAnswer('silent', { method: 'GET', path: '/' }, 'why'), false],
      [new FirecrackerNoAnswer('broken', PUT, 'why', { status: 204 }), true],
      [new FirecrackerNoAnswer('broken', PUT, 'why', { status: 400 }), false],
      [new FirecrackerNoAnswer('unreachable', PUT, 'why', { mayHaveTakenEffect: false }), false],
    ]
    for (const [fault, expected] of cases) assert.equal(fault.mayHaveTakenEffect, expected, fault.message)
  })

  it('have a hint each, and bounds', () => {
    for (const reason of ['unreachable', 'silent', 'broken', 'unintelligible'] as const) {
      const fault = new FirecrackerNoAnswer(reason, PUT, 'x'.repeat(100_000))
      assert.match(fault.hint ?? '', /bandsox /)
      assert.ok(fault.message.length < 2_200, String(fault.message.length))
    }
    const refused = new FirecrackerFault(PUT, 400, JSON.stringify({ fault_message: 'x'.repeat(60_000) }))
    assert.equal(refused.faultMessage.length, 2_000)
    assert.match(refused.hint ?? '', /bandsox logs/)
  })
})
