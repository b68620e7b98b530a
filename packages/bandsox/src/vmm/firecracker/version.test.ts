import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { capabilitiesOf, isAtLeast, losesVsockAtPause, requireRecentFirecracker, versionNumber } from './version.js'

describe('a Firecracker', () => {
  it('tells its version, and must not be too old', () => {
    const text = 'Firecracker v1.17.0-dev\n\nSupported snapshot data format versions: v9.0.0\n'
    assert.deepEqual(requireRecentFirecracker(text), { version: '1.17.0-dev', number: [1, 17, 0] })
    assert.equal(requireRecentFirecracker('Firecracker v1.10.0').version, '1.10.0')
    assert.equal(requireRecentFirecracker('Firecracker v2.0.0').version, '2.0.0')
    for (const old of ['1.9.1', '0.25.0', '1.9.99'])
      assert.throws(
        () => requireRecentFirecracker(`Firecracker v${old}`),
        hasCode('host-unsupported', new RegExp(`${old} is too old: 1.10.0`)),
      )
    assert.throws(() => requireRecentFirecracker('QEMU emulator version 9'), hasCode('host-unsupported', /cannot tell/))
  })

  it('is compared number by number', () => {
    assert.ok(isAtLeast([1, 10, 0], '1.9.9'))
    assert.ok(isAtLeast([1, 16, 1], '1.16.1'))
    assert.ok(!isAtLeast([1, 16, 0], '1.16.1'))
    assert.ok(isAtLeast([2, 0, 0], '1.99.0'))
    assert.ok(!isAtLeast([1, 2, 9], '1.10.0'))
  })

  it('can do what its release can', () => {
    const old = capabilitiesOf([1, 10, 1])
    assert.deepEqual([old.networkOverrides, old.vsockOverride, old.clockRealtime], [false, false, false])
    assert.deepEqual(old.states, ['full', 'diff'])
    const last = capabilitiesOf([1, 16, 1])
    assert.deepEqual([last.networkOverrides, last.vsockOverride, last.clockRealtime], [true, true, true])
    assert.deepEqual(
      [[1, 15, 1] as const, [1, 16, 0] as const, [1, 16, 1] as const, [1, 17, 0] as const].map(losesVsockAtPause),
      [false, true, true, false],
    )
    assert.deepEqual(
      [versionNumber('1.17.0-dev'), versionNumber('1.17'), versionNumber('x')],
      [[1, 17, 0], undefined, undefined],
    )
  })
})
