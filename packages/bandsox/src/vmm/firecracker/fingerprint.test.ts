import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { defaultLimits } from '../limits.js'
import type { MachineSpec } from '../vmm.js'
import { type FirecrackerFacts, firecrackerFingerprint } from './fingerprint.js'

const spec: MachineSpec = {
  sandboxId: 'sbx_7f2',
  directory: '/vms/sbx_7f2',
  vcpu: 2,
  memoryMib: 256,
  files: { kernel: 'kernel', initramfs: 'initramfs', root: 'root.squashfs', overlay: 'overlay.ext4' },
  hostname: 'box',
  vsock: 'auto',
  cid: 5,
  port: 9001,
  uid: 1_900_000_002,
  limits: { ...defaultLimits },
}
const of = (over: Partial<MachineSpec> = {}, host: Partial<FirecrackerFacts> = {}) =>
  firecrackerFingerprint({ ...spec, ...over }, { version: '1.16.1', cpu: 'this one', tscKhz: 2_000_000, ...host })

describe('what a state of Firecracker depends on', () => {
  it('is the same for two machines of one shape, whatever each has of its own', () => {
    const none = { diskBytesPerSecond: null, diskOperationsPerSecond: null, cpus: null, processes: null }
    const files = { kernel: 'k', initramfs: 'i', root: 'r', overlay: 'o' }
    const names = { sandboxId: 'sbx_8', directory: '/vms/sbx_8', hostname: 'two', files }
    assert.deepEqual(
      of({ ...names, cid: 6, port: 9002, uid: 7, limits: none, trackDirtyPages: true, vsock: 'on' }),
      of(),
    )
  })

  it('differs with the machine, its devices, and the host', () => {
    const changed = [
      of({ vcpu: 1 }),
      of({ memoryMib: 512 }),
      of({ vsock: 'off' }),
      of({ isRootWritable: true }),
      of({}, { version: '1.16.2' }),
      of({}, { cpu: 'another' }),
      of({}, { tscKhz: 3_000_000 }),
    ]
    for (const each of changed) assert.notDeepEqual(each, of())
    assert.equal(new Set(changed.map((each) => JSON.stringify(each))).size, changed.length)
  })
})
