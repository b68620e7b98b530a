import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { snapshotLoad } from './load.js'
import { capabilitiesOf } from './version.js'

describe('what a Firecracker is told to load', () => {
  const newest = capabilitiesOf([1, 17, 0])
  const oldest = capabilitiesOf([1, 10, 0])

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
