import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { compareFingerprints } from './compatible.js'

const saved = { vmm: 'qemu', version: '7.2.22', cpu: 'one', tscKhz: '2445400' }

describe('what a state was saved by, and what is to load it', () => {
  it('fit when all is equal, and each difference is said', () => {
    assert.deepEqual(compareFingerprints(saved, { ...saved }), [])
    const { version: _, ...other } = { ...saved, cpu: 'another', more: '1' }
    assert.deepEqual(compareFingerprints(saved, other), [
      'its version was 7.2.22, and is unknown here',
      'its cpu was one, and is another here',
      'its more was unknown, and is 1 here',
    ])
  })

  it('fit when their clocks are 250 millionths apart at the most, or one of them is not known', () => {
    const at = (tscKhz: string) => compareFingerprints(saved, { ...saved, tscKhz })
    assert.deepEqual(at('2445990'), [])
    assert.deepEqual(at('2444810'), [])
    const { tscKhz: _, ...unknown } = saved
    assert.deepEqual(compareFingerprints(saved, unknown), [])
    assert.deepEqual(compareFingerprints(unknown, saved), [])
    for (const apart of ['2446100', '2444700']) assert.equal(at(apart).length, 1, apart)
    assert.deepEqual(at('2000000'), ["its processor's clock (TSC) ran at 2445.4 MHz, and runs at 2000.0 MHz here"])
  })
})
