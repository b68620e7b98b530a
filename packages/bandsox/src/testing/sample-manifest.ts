/** The manifest of a small snapshot, to be changed by a test. */
import type { Manifest, RecordedSnapshotFile } from '../sandbox/snapshot/manifest.js'
import { sampleRecord } from './sample-record.js'

const MIB = 1024 * 1024
const file = (name: string, sizeBytes: number): RecordedSnapshotFile => ({
  ...{ name, sizeBytes, allocatedBytes: sizeBytes, digest: '0'.repeat(64) },
})

/** 64 MiB of memory, and of disk. */
export const sampleManifest = (over: Partial<Manifest> = {}): Manifest => {
  const { image, env, labels, metadata, limits, vsock } = sampleRecord()
  return {
    ...{ format: 1, createdAt: '2026-01-01T00:00:00.000Z', kind: 'full' },
    sandbox: { id: 'sbx_aaaaaaaaaa', name: 'sample' },
    image,
    shape: { vcpu: 1, memoryMib: 64, diskMib: 64, env, labels, metadata, limits, vsock },
    machine: { vmm: 'qemu', version: '7.2.22', accelerator: 'tcg', vsock: null, fingerprint: { machine: 'q35' } },
    ...{ port: 9_000, rootFile: 'root.squashfs', layers: [], isFrozen: true, pauseMs: 10 },
    files: [file('memory', 64 * MIB), file('devices', 10), file('root.squashfs', 10), file('overlay.ext4', 64 * MIB)],
    ...over,
  }
}
