import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { changedLimits, snapshotLoad } from './load.js'

describe('what a Firecracker is told to load', () => {
  const newest = [1, 17, 0] as const
  const oldest = [1, 10, 0] as const

  it('lies beside it, goes on at once, and has the host’s time where the release can', () => {
    assert.deepEqual(snapshotLoad(newest, {}), {
      snapshot_path: 'devices',
      mem_backend: { backend_type: 'File', backend_path: 'memory' },
      resume_vm: true,
      clock_realtime: true,
    })
    assert.equal('clock_realtime' in snapshotLoad(oldest, {}), false)
    assert.equal('clock_realtime' in snapshotLoad(newest, { clockRealtime: false }), false)
    assert.equal(snapshotLoad(newest, { resume: false }).resume_vm, false)
    assert.equal(snapshotLoad(newest, { trackDirtyPages: true }).track_dirty_pages, true)
    assert.equal(snapshotLoad([1, 12, 9], { trackDirtyPages: true }).enable_diff_snapshots, true)
    assert.ok(!('enable_diff_snapshots' in snapshotLoad(newest, { trackDirtyPages: true })))
  })

  it('keeps limits that are known to be the same', () => {
    const limits = { cpus: null, diskBytesPerSecond: 1_000_000, diskOperationsPerSecond: null }
    assert.equal(changedLimits(limits, { ...limits, cpus: 2 }), undefined)
    assert.equal(changedLimits(limits, undefined), limits)
    for (const saved of [
      { ...limits, diskBytesPerSecond: null },
      { ...limits, diskOperationsPerSecond: 10 },
    ])
      assert.equal(changedLimits(limits, saved), limits)
  })

  it('has other TAPs where the release can, and else an error that says which can', () => {
    assert.deepEqual(snapshotLoad(newest, { networkOverrides: { eth0: 'tap7' } }).network_overrides, [
      { iface_id: 'eth0', host_dev_name: 'tap7' },
    ])
    assert.equal('network_overrides' in snapshotLoad(oldest, { networkOverrides: {} }), false)
    assert.throws(
      () => snapshotLoad(oldest, { networkOverrides: { eth0: 'tap7' } }),
      hasCode('host-unsupported', /other TAPs/),
    )
    assert.throws(() => snapshotLoad(oldest, { clockRealtime: true }), hasCode('host-unsupported', /host's time/))
  })
})
