/** Sources of uploads that are read again after a break. */
import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { streamSource, type UploadSource } from './upload-source.js'

/** A stream whose blocks a test gives out by hand. */
class Hand implements AsyncIterable<Uint8Array> {
  readonly #asked: ((result: IteratorResult<Uint8Array>) => void)[] = []
  returned = 0

  /** How often it was asked for a block. */
  get asked(): number {
    return this.#asked.length
  }

  [Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    return {
      next: () => new Promise((resolve) => void this.#asked.push(resolve)),
      return: async () => {
        this.returned++
        return { done: true, value: undefined }
      },
    }
  }

  give(text: string): void {
    this.#asked.at(-1)?.({ done: false, value: Buffer.from(text) })
  }

  end(): void {
    this.#asked.at(-1)?.({ done: true, value: undefined })
  }
}

const reading = (source: UploadSource, offset: number) => source.read(offset)[Symbol.asyncIterator]()
const textOf = ({ value }: IteratorResult<Uint8Array>) => Buffer.from(value ?? []).toString()
/** Lets what waits take its turn. */
const turn = () => new Promise((resolve) => setImmediate(resolve))

describe('a stream', () => {
  it('gives each block once, though a reading that was left still waits for it', async () => {
    const hand = new Hand()
    const source = streamSource(hand)
    const first = reading(source, 0)
    const some = first.next()
    await turn()
    hand.give('some')
    assert.equal(textOf(await some), 'some')
    const left = first.next() // the connection breaks here, and nobody reads this one on
    await turn()
    source.confirmed(4)
    const second = reading(source, 4)
    const more = second.next()
    await turn()
    assert.equal(hand.asked, 2)
    hand.give('more')
    assert.equal(textOf(await more), 'more')
    await left
    const end = second.next()
    await turn()
    assert.equal(hand.asked, 3)
    hand.end()
    assert.deepEqual(await end, { done: true, value: undefined })
  })

  it('gives what was not confirmed again, from the middle of a block as well', async () => {
    async function* stream() {
      yield Buffer.from('abc')
      yield Buffer.from('def')
    }
    const source = streamSource(stream())
    const first = reading(source, 0)
    await first.next()
    await first.next()
    source.confirmed(1)
    const second = reading(source, 1)
    assert.equal(textOf(await second.next()), 'bc')
    assert.equal(textOf(await second.next()), 'def')
    assert.ok((await second.next()).done)
  })

  it('that failed while nobody read from it is not taken for one that has ended', async () => {
    async function* stream() {
      yield Buffer.from('some')
      throw new Error('the disk is gone')
    }
    const source = streamSource(stream())
    const first = reading(source, 0)
    await first.next()
    await assert.rejects(first.next(), /the disk is gone/) // lost with its connection
    const second = reading(source, 0)
    assert.equal(textOf(await second.next()), 'some')
    await assert.rejects(second.next(), /the disk is gone/)
  })

  it('that is waited for is let go of without waiting', async () => {
    const hand = new Hand()
    const source = streamSource(hand)
    void reading(source, 0).next()
    await turn()
    await source.close()
    assert.equal(hand.returned, 1)
  })
})
