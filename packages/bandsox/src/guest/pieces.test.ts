import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { seededRandom } from '../testing/random.js'
import { Pieces } from './pieces.js'

describe('pieces', () => {
  it('give back every byte in order, whatever the sizes', () => {
    for (let seed = 1; seed <= 15; seed++) {
      const random = seededRandom(seed)
      const pieces = new Pieces()
      const added: Buffer[] = []
      const taken: Buffer[] = []
      for (let count = random.below(200); count > 0; count--) {
        const data = random.bytes(random.pick([0, 1, 2, 100, 4_095, 4_096, 5_000]))
        added.push(data)
        pieces.add(data)
        if (random.below(10) === 0) taken.push(...pieces.take())
      }
      taken.push(...pieces.take())
      assert.ok(Buffer.concat(taken).equals(Buffer.concat(added)), `seed ${seed}`)
    }
  })

  it('of single bytes are few, so that a guest cannot choose how many objects we hold', () => {
    const pieces = new Pieces()
    for (let count = 0; count < 1_000_000; count++) pieces.add(Buffer.of(count & 0xff))
    const taken = pieces.take()
    assert.equal(
      taken.reduce((sum, { length }) => sum + length, 0),
      1_000_000,
    )
    assert.ok(taken.length <= 16, `${taken.length} buffers`)
  })

  it('that were taken are not written over by later ones', () => {
    const pieces = new Pieces()
    pieces.add(Buffer.from('first'))
    const [first] = pieces.take()
    pieces.add(Buffer.from('other'))
    assert.equal(first?.toString(), 'first')
    assert.equal(Buffer.concat(pieces.take()).toString(), 'other')
    assert.deepEqual(pieces.take(), [])
  })

  it('do not change with the buffer that a small one came in', () => {
    const pieces = new Pieces()
    const buffer = Buffer.from('abc')
    pieces.add(buffer)
    buffer.fill('x')
    assert.equal(Buffer.concat(pieces.take()).toString(), 'abc')
  })
})
