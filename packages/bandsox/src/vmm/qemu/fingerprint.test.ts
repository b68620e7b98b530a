import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { MachineSpec } from '../vmm.js'
import { type QemuFacts, qemuFingerprint } from './fingerprint.js'

const spec: MachineSpec = {
  sandboxId: 'sbx_aaaaaaaaaa',
  directory: '/vms/sbx_aaaaaaaaaa',
  vcpu: 1,
  memoryMib: 256,
  files: { kernel: 'kernel', initramfs: 'initramfs', root: 'root.squashfs', overlay: 'overlay.ext4' },
  hostname: 'one',
  vsock: 'auto',
  cid: 5,
  port: 9_001,
  uid: 1_900_000_002,
  limits: { diskBytesPerSecond: 1_000, diskOperationsPerSecond: 10, cpus: 1, processes: 200 },
}
const other: MachineSpec = {
  ...spec,
  sandboxId: 'sbx_bbbbbbbbbb',
  directory: '/vms/sbx_bbbbbbbbbb',
  files: { kernel: 'k', initramfs: 'i', root: 'r', overlay: 'o' },
  hostname: 'two',
  cid: 77,
  port: 9_002,
  uid: 1_900_000_074,
  limits: { diskBytesPerSecond: null, diskOperationsPerSecond: null, cpus: null, processes: null },
  trackDirtyPages: true,
  serialLine: 'port',
}
const facts: QemuFacts = { version: '7.2.0', accelerator: 'tcg', vsock: 'kernel', cpu: 'this one' }

describe('what a state of QEMU depends on', () => {
  const own = qemuFingerprint(spec, facts)

  it('is the same for two machines of one shape, whatever each has of its own', () => {
    assert.deepEqual(qemuFingerprint(other, facts), own)
  })

  it('differs with the machine, its devices, and the host', () => {
    const changed = [
      qemuFingerprint({ ...spec, vcpu: 2 }, facts),
      qemuFingerprint({ ...spec, memoryMib: 512 }, facts),
      qemuFingerprint({ ...spec, serialLine: 'uart' }, facts),
      qemuFingerprint({ ...spec, isRootWritable: true }, facts),
      qemuFingerprint(spec, { ...facts, vsock: null }),
      qemuFingerprint(spec, { ...facts, version: '7.2.1' }),
      qemuFingerprint(spec, { ...facts, accelerator: 'kvm' }),
      qemuFingerprint(spec, { ...facts, cpu: 'another' }),
      qemuFingerprint(spec, { ...facts, tscKhz: 2_445_400 }),
    ]
    for (const each of changed) assert.notDeepEqual(each, own)
    assert.equal(new Set(changed.map((each) => JSON.stringify(each))).size, changed.length)
  })

  it('has nothing of the vsock daemon, whose device is in no state', () => {
    assert.deepEqual(
      qemuFingerprint(spec, { ...facts, vsock: 'daemon' }),
      qemuFingerprint(spec, { ...facts, vsock: null }),
    )
  })
})
