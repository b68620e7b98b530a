import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { Releases } from './releases.js'

describe('releases', () => {
  it('run in reverse, each once', async () => {
    const releases = new Releases()
    const order: string[] = []
    for (const what of ['first', 'second', 'third']) releases.add(what, async () => void order.push(what))
    assert.deepEqual(await releases.run(), [])
    assert.deepEqual(await releases.run(), [])
    assert.deepEqual(order, ['third', 'second', 'first'])
  })

  it('go on after one has failed, and tell of it', async () => {
    const releases = new Releases()
    const order: string[] = []
    releases.add('a', async () => void order.push('a'))
    releases.add('b', () => Promise.reject(new Error('stuck')))
    releases.add('c', () => {
      throw new Error('at once')
    })
    assert.deepEqual(await releases.run(), ['cannot release c: at once', 'cannot release b: stuck'])
    assert.deepEqual(order, ['a'])
  })

  it('wait for each one, but not for ever', async () => {
    const releases = new Releases(40)
    const order: string[] = []
    releases.add('after it', async () => void order.push('after it'))
    releases.add('the endless one', () => new Promise(() => undefined))
    releases.add('the slow one', async () => {
      await new Promise((resolve) => setImmediate(resolve))
      order.push('the slow one')
    })
    assert.deepEqual(await releases.run(), ['cannot release the endless one: no end after 40 ms'])
    assert.deepEqual(order, ['the slow one', 'after it'])
  })

  it('that were forgotten do not run', async () => {
    const releases = new Releases()
    releases.add('a', () => Promise.reject(new Error('it ran')))
    releases.forget()
    assert.deepEqual(await releases.run(), [])
  })

  it('that end while they run, once more, run each once all the same', async () => {
    const releases = new Releases()
    let count = 0
    releases.add('a', async () => void count++)
    releases.add('b', async () => void count++)
    await Promise.all([releases.run(), releases.run()])
    assert.equal(count, 2)
  })
})
