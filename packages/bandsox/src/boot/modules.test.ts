import assert from 'node:assert/strict'
import { test } from 'node:test'
import { moduleName, parseBuiltin, planModules } from './modules.js'

const kernel: Record<string, string[]> = {
  virtio: ['virtio_ring'],
  virtio_ring: [],
  virtio_blk: ['virtio_ring', 'virtio'],
  virtio_net: ['virtio', 'net_failover'],
  net_failover: ['failover'],
  failover: [],
  broken: ['nowhere'],
}
const dependenciesOf = async (name: string) => kernel[name]

test('a module comes after all that it needs, and each only once', async () => {
  const plan = await planModules({ boot: ['virtio_blk', 'virtio'], late: [], builtin: new Set(), dependenciesOf })
  assert.deepEqual(plan.boot, ['virtio_ring', 'virtio', 'virtio_blk'])
})

test('the late list holds only what the boot list has not loaded', async () => {
  const plan = await planModules({
    boot: ['virtio_blk'],
    late: ['virtio_net', 'virtio_blk'],
    builtin: new Set(),
    dependenciesOf,
  })
  assert.deepEqual(plan.late, ['failover', 'net_failover', 'virtio_net'])
})

test('what is built in is neither loaded nor absent', async () => {
  const builtin = new Set(['virtio', 'virtio_ring', 'ext4'])
  const plan = await planModules({ boot: ['virtio_blk', 'ext4'], late: [], builtin, dependenciesOf })
  assert.deepEqual(plan, { boot: ['virtio_blk'], late: [], builtin: ['ext4'], absent: [] })
})

test('a module that does not exist, or needs one that does not, is named as absent', async () => {
  const plan = await planModules({
    boot: ['squashfs', 'broken', 'virtio'],
    late: [],
    builtin: new Set(),
    dependenciesOf,
  })
  assert.deepEqual(plan.absent, ['squashfs', 'broken'])
  assert.deepEqual(plan.boot, ['virtio_ring', 'virtio'])
})

test('modules that need each other end the search', async () => {
  const circle = async (name: string) => ({ a: ['b'], b: ['a'] })[name]
  const plan = await planModules({ boot: ['a'], late: [], builtin: new Set(), dependenciesOf: circle })
  assert.deepEqual(plan.boot, ['b', 'a'])
})

test('names are compared as the kernel does', () => {
  assert.equal(moduleName('virtio-rng.ko'), 'virtio_rng')
  assert.equal(moduleName('virtio_rng.ko.xz'), 'virtio_rng')
  assert.equal(moduleName('overlay.ko.zst'), 'overlay')
  assert.deepEqual(
    parseBuiltin('kernel/fs/ext4/ext4.ko\nkernel/drivers/char/hw_random/rng-core.ko\n'),
    new Set(['ext4', 'rng_core']),
  )
})
