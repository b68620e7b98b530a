import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { PoolRecord } from '../../store/pool-store.js'
import { type TestHost, testHost } from '../../testing/test-host.js'
import { qemuDriver } from '../../vmm/qemu/qemu.js'
import { fillPool, needsFilling } from './fill-pool.js'

const setPool = (host: TestHost): Promise<PoolRecord> =>
  host.store.pools.set({
    ...{ image: 'No Image Is Called So', size: 2, maxAgeMs: 60_000 },
    options: { vcpu: 1, memoryMib: 128, diskMib: 64, vsock: 'auto' },
  })

/** As every command that opens the storage asks. */
async function isAskedFor(host: TestHost): Promise<boolean> {
  const [pool] = await host.store.pools.list()
  assert.ok(pool)
  return await needsFilling(host, pool)
}

describe('a pool that lacks some', () => {
  it('is to be filled by one process, and after a try that failed only when somebody asks for it', async (t) => {
    const host = await testHost(t, { shimPath: '/no/shim', vmm: qemuDriver({ shim: '/no/shim', searchPath: [] }) })
    const { id } = await setPool(host)
    assert.ok(await isAskedFor(host))

    const release = await host.store.pools.holdForFilling(id)
    assert.ok(release)
    assert.equal(await isAskedFor(host), false, 'somebody is at it')
    assert.equal(await fillPool(host, id), undefined)
    await release()
    assert.ok(await isAskedFor(host))

    await assert.rejects(fillPool(host, id))
    assert.notEqual((await host.store.pools.read(id))?.failure, undefined)
    assert.equal(await isAskedFor(host), false, 'every command would start a process that fails again')
    await setPool(host)
    assert.ok(await isAskedFor(host), 'it was set anew')
  })
})
