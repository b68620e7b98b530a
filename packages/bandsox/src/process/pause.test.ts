import assert from 'node:assert/strict'
import { it } from 'node:test'
import { pause } from './pause.js'

it('a pause lasts as long as it should', async () => {
  const before = performance.now()
  await pause(30)
  assert.ok(performance.now() - before >= 29)
})

it('a pause ends with the reason of its signal, before it begins and while it lasts', async () => {
  const reason = new Error('enough')
  const cancel = new AbortController()
  const pausing = pause(60_000, cancel.signal)
  cancel.abort(reason)
  await assert.rejects(pausing, (error) => error === reason)
  await assert.rejects(pause(60_000, cancel.signal), (error) => error === reason)
})
