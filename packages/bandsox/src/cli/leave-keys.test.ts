import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { LeaveKeys } from './leave-keys.js'

function typed(...pieces: string[]): { passed: string; leaves: boolean } {
  const keys = new LeaveKeys()
  let passed = ''
  for (const piece of pieces) {
    const taken = keys.take(Buffer.from(piece, 'latin1'))
    passed += Buffer.from(taken.passed).toString('latin1')
    if (taken.leaves) return { passed, leaves: true }
  }
  return { passed, leaves: false }
}

describe('the keys that leave a terminal', () => {
  const cases: [string, string, { passed: string; leaves: boolean }][] = [
    ['are Enter, tilde, dot', 'ls\r~.', { passed: 'ls\r', leaves: true }],
    ['need no Enter at the very beginning', '~.', { passed: '', leaves: true }],
    ['drop what is typed behind them', '\n~.more', { passed: '\n', leaves: true }],
    ['are a path in the midst of a line', 'cp ~/.profile ~.\r', { passed: 'cp ~/.profile ~.\r', leaves: false }],
    ['hold a tilde back until the next key', '\r~', { passed: '\r', leaves: false }],
    ['let a tilde pass that something else follows', '\r~/bin\r', { passed: '\r~/bin\r', leaves: false }],
    ['make one tilde of two', '\r~~.\r', { passed: '\r~.\r', leaves: false }],
    ['begin anew with an Enter behind a tilde', '\r~\r~.', { passed: '\r~\r', leaves: true }],
    ['leave any other byte as it is', '\x03\x1a\xff\x00~.', { passed: '\x03\x1a\xff\x00~.', leaves: false }],
  ]
  for (const [what, text, expected] of cases) {
    it(`${what}, however they are cut`, () => {
      assert.deepEqual(typed(text), expected)
      assert.deepEqual(typed(...text), expected)
    })
  }
})
