import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { guestFault } from './guest-fault.js'

describe("a guest's error", () => {
  it('becomes one of ours, by its code', () => {
    const codes = [
      'not-found',
      'permission-denied',
      'no-space',
      'command-not-found',
      'not-executable',
      'arguments-too-long',
      'aborted',
    ]
    assert.deepEqual(
      codes.map((code) => guestFault({ code, message: 'm' }).code),
      [
        'file-not-found',
        'permission-denied',
        'no-space',
        'command-not-found',
        'command-not-executable',
        'bad-request',
        'cancelled',
      ],
    )
  })

  it('with a code that nobody knows means internal, whatever JavaScript calls by that name', () => {
    for (const code of ['', 'something-new', 'internal', 'constructor', '__proto__', 'toString', 'hasOwnProperty']) {
      const error = guestFault({ code, message: 'm' })
      assert.equal(error.code, 'internal', code)
      assert.match(error.hint ?? '', /bandsox logs/)
    }
  })

  it('cannot send a terminal control characters', () => {
    const message = '\u001b]0;title\u0007\r\nline\u0000\u009b31m\u007f'
    const error = guestFault({ code: 'not-found', message })
    assert.equal(error.message, 'in the guest: \ufffd]0;title\ufffd\ufffd\ufffdline\ufffd\ufffd31m\ufffd')
  })

  it('is cut to a length that a person reads', () => {
    assert.ok(guestFault({ code: 'not-found', message: 'x'.repeat(4_096) }).message.length < 1_100)
  })
})
