import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseSignal } from './signal.js'

test('a signal has a name with or without SIG, or a number', () => {
  for (const text of ['SIGQUIT', 'QUIT', '3']) assert.equal(parseSignal(text), 'SIGQUIT')
})

test('what the agent does not know is none', () => {
  for (const text of ['', 'SIGRTMIN+3', '37', '0', '-1', 'quit', 'SIG']) assert.equal(parseSignal(text), undefined)
})
