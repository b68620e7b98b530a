import assert from 'node:assert/strict'
import { totalmem } from 'node:os'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { sampleRecord } from '../testing/sample-record.js'
import { testHost } from '../testing/test-host.js'
import { qemuDriver } from '../vmm/qemu/qemu.js'
import { admitWithin, hostMemoryMib } from './admission.js'

const wanted = (memoryMib: number) => sampleRecord({ id: 'sbx_wwwwwwwwww', memoryMib })

describe('memory of the host', () => {
  it('is given up to the bound, and not beyond it', () => {
    const admit = admitWithin(1_000, 1.5)
    const running = [
      { id: 'sbx_aaaaaaaaaa', memoryMib: 1_000 },
      { id: 'sbx_bbbbbbbbbb', memoryMib: 244 },
    ]
    admit(running, wanted(256))
    assert.throws(
      () => admit(running, wanted(257)),
      hasCode(
        'host-resource',
        /^no memory for a sandbox of 257 MiB: 2 running ones have 1244 of 1500 MiB \(1\.5 × this host's 1000 MiB\)$/,
      ),
    )
    admit([{ id: 'sbx_wwwwwwwwww', memoryMib: 1_500 }], wanted(1_500)) // its own does not count twice
  })

  it('is what this machine has, or less where a container may have less', async () => {
    const mib = await hostMemoryMib()
    assert.ok(mib > 64 && mib <= totalmem() / 1024 / 1024, String(mib))
  })

  it('is not given twice to those that ask at the same time', async (t) => {
    const host = await testHost(t, { shimPath: '/no/shim', vmm: qemuDriver({ shim: '/no/shim', searchPath: [] }) })
    const admit = admitWithin(1_000, 1)
    const ids = ['sbx_aaaaaaaaaa', 'sbx_bbbbbbbbbb', 'sbx_cccccccccc', 'sbx_dddddddddd', 'sbx_eeeeeeeeee']
    for (const id of ids)
      await host.store.insert(sampleRecord({ id, memoryMib: 300, state: { kind: 'creating', since: '' } }))
    const starts = await Promise.allSettled(ids.map((id) => host.store.takeNumbers(id, { admit })))
    assert.deepEqual(starts.map(({ status }) => status).sort(), [
      'fulfilled',
      'fulfilled',
      'fulfilled',
      'rejected',
      'rejected',
    ])
    assert.equal((await host.store.list()).filter(({ cid }) => cid !== null).length, 3)
  })
})
