import assert from 'node:assert/strict'
import { Readable } from 'node:stream'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { lines } from './lines.js'

async function all(chunks: (string | Buffer)[], maxBytes = 100): Promise<string[]> {
  const found: string[] = []
  for await (const line of lines(Readable.from(chunks.map((chunk) => Buffer.from(chunk))), maxBytes)) found.push(line)
  return found
}

describe('lines', () => {
  it('are cut at newlines, wherever the stream is cut', async () => {
    assert.deepEqual(await all(['a\nb', 'c\n', '\n', 'd\r\n']), ['a', 'bc', '', 'd'])
    assert.deepEqual(await all([...'one\r\ntwo\n']), ['one', 'two'])
  })

  it('count without a last newline, and not at all for an empty stream', async () => {
    assert.deepEqual(await all(['a\nlast']), ['a', 'last'])
    assert.deepEqual(await all([]), [])
    assert.deepEqual(await all(['\n']), [''])
  })

  it('keep characters whole that were cut', async () => {
    const bytes = Buffer.from('漢字\n')
    assert.deepEqual(await all([bytes.subarray(0, 1), bytes.subarray(1, 5), bytes.subarray(5)]), ['漢字'])
  })

  it('are refused when they are too long, with or without an end, in one chunk or many', async () => {
    assert.deepEqual(await all(['x'.repeat(10), '\n'], 10), ['x'.repeat(10)])
    for (const chunks of [
      ['x'.repeat(11)],
      [`${'x'.repeat(11)}\n`],
      ['x'.repeat(6), 'x'.repeat(5)],
      ['x'.repeat(6), `${'x'.repeat(5)}\n`],
    ]) {
      await assert.rejects(all(chunks, 10), hasCode('vmm-control', /more than 10 bytes/))
    }
  })

  it('fail with the stream', async () => {
    const broken = Readable.from([Buffer.from('a')])
    broken.destroy(new Error('torn'))
    await assert.rejects(lines(broken, 10).next(), /torn/)
  })
})
