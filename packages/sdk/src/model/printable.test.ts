import assert from 'node:assert/strict'
import { test } from 'node:test'
import { printable, printableLine } from './printable.js'

test('what a terminal would obey is not there any more', () => {
  for (const [name, text] of [
    ['ESC', '\u001b]52;c;aGk=\u0007'],
    ['CSI of C1', '\u009b2J'],
    ['DEL', '\u007f'],
    ['carriage return', '\r'],
    ['right-to-left override', '\u202e'],
    ['zero width joiner', '\u200d'],
    ['line separator', '\u2028'],
  ] as const) {
    assert.match(printable(text), /\u{fffd}/u, name)
    assert.doesNotMatch(printable(text), /\p{Cc}|\p{Cf}|\p{Zl}/u, name)
  }
})

test('text of any language stays, and in messages so do new lines and tabs', () => {
  assert.equal(printable('größer\n\tкот 猫 🐈'), 'größer\n\tкот 猫 🐈')
  assert.equal(printableLine('one\ntwo\tthree'), 'one\u{fffd}two\u{fffd}three')
})
