import assert from 'node:assert/strict'
import { EventEmitter, once } from 'node:events'
import { describe, it } from 'node:test'
import { Turns } from './turns.js'

const never = new AbortController().signal

/** A call that ends when it is told to. */
function held() {
  const events = new EventEmitter()
  const ended = once(events, 'end')
  return {
    call: () => ended,
    end: () => void events.emit('end'),
    fail: (error: Error) => void events.emit('error', error),
  }
}

const soon = () => new Promise((resolve) => setImmediate(resolve))

describe('turns', () => {
  it('come one after the other, in order, also after a failure', async () => {
    const turns = new Turns()
    const log: string[] = []
    const [first, second] = [held(), held()]
    const taken = [first, second].map(({ call }, each) =>
      turns.take(() => {
        log.push(`begins ${each}`)
        return call()
      }, never),
    )
    const last = turns.take(async () => 'last', never)
    await soon()
    assert.deepEqual(log, ['begins 0'])
    second.end() // before its turn, in which it then ends at once
    await soon()
    assert.deepEqual(log, ['begins 0'])
    first.fail(new Error('mine'))
    await assert.rejects(Promise.resolve(taken[0]), /mine/)
    assert.equal(await last, 'last')
    assert.deepEqual(log, ['begins 0', 'begins 1'])
  })

  it('are not overtaken when somebody between gives up', async () => {
    const turns = new Turns()
    const first = held()
    const given = new AbortController()
    let begun = 0
    const count = async () => void begun++
    const taken = turns.take(first.call, never)
    const impatient = turns.take(count, given.signal)
    const last = turns.take(count, never)
    given.abort(new Error('enough'))
    await assert.rejects(impatient, /enough/)
    await soon()
    assert.equal(begun, 0)
    first.end()
    await Promise.all([taken, last])
    assert.equal(begun, 1)
    await assert.rejects(turns.take(count, given.signal), /enough/)
    assert.equal(begun, 1)
  })
})
