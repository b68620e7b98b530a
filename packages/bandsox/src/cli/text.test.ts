import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { durationText, rateText, sizeText, table } from './text.js'

describe('text for people', () => {
  it('gives sizes in binary units', () => {
    assert.deepEqual([0, 1_023, 1_024, 1_536, 5 * 1024 ** 3, 3 * 1024 ** 5].map(sizeText), [
      '0 B',
      '1023 B',
      '1.0 KiB',
      '1.5 KiB',
      '5.0 GiB',
      '3072.0 TiB',
    ])
  })

  it('gives times and rates', () => {
    assert.deepEqual([0.4, 999, 1_000, 61_234].map(durationText), ['0 ms', '999 ms', '1.00 s', '61.23 s'])
    assert.deepEqual([rateText(1_048_576, 500), rateText(3, 67), rateText(10, 0)], ['2.0 MiB/s', '45 B/s', '0 B/s'])
  })

  it('sets tables in columns without lines or colours, easy to cut', () => {
    const text = table(
      ['NAME', 'ID'],
      [
        ['web', 'sbx_a'],
        ['-', 'sbx_b'],
      ],
    )
    assert.equal(text, 'NAME  ID\nweb   sbx_a\n-     sbx_b')
  })

  it('sets nothing that a terminal obeys: what a guest calls itself is in them', () => {
    const text = table(['COMMAND'], [['\u001b]0;owned\u0007 \u009b2J \u202e']])
    for (const obeyed of ['\u001b', '\u0007', '\u009b', '\u202e'])
      assert.ok(!text.includes(obeyed), JSON.stringify(text))
  })
})
