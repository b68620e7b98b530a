import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { defaultLimits } from '../limits.js'
import type { MachineSpec } from '../vmm.js'
import { firecrackerDriver } from './firecracker.js'

describe('the disks of a Firecracker', () => {
  const spec: MachineSpec = {
    ...{ sandboxId: 'sbx_aaaaaaaaaa', directory: '/vms/sbx_aaaaaaaaaa', vcpu: 1, memoryMib: 256, hostname: 'box' },
    files: { kernel: 'kernel', initramfs: 'initramfs', root: 'root.squashfs', overlay: 'overlay.ext4' },
    layers: ['top.qcow2'],
    ...{ vsock: 'auto', cid: 77, port: 9_005, uid: 1_900_077, limits: defaultLimits },
  }

  it('are no layers, which is said before anything is looked for', async () => {
    const driver = firecrackerDriver({ shim: '/no/shim', searchPath: [] }, async () => ({ jailer: 'auto' }))
    const refused = hasCode('host-unsupported', /no disks in layers/)
    await assert.rejects(driver.start(spec), refused)
    await assert.rejects(driver.load(spec, { devices: '/no', memory: '/no' }), refused)
    await assert.rejects(driver.makeLayer('/no/layer', 512), refused)
    await assert.rejects(driver.checkLayer('/no/layer', 512), refused)
    // One without any is refused for something else: there is no Firecracker.
    await assert.rejects(driver.start({ ...spec, layers: [] }), hasCode('host-missing'))
  })
})
