/** What is told of a snapshot to those who ask. */
import type { SnapshotInfo } from '@bandsox/sdk'
import type { SnapshotRecord } from '../../store/snapshot-store.js'
import type { Host } from '../host.js'
import { restoreCopyBytes } from './disk.js'
import { snapshotFiles } from './files.js'
import type { Manifest } from './manifest.js'
import { keptWholeBytes } from './whole.js'

export async function snapshotInfo(host: Host, record: SnapshotRecord, manifest: Manifest): Promise<SnapshotInfo> {
  const { sandbox, image, shape, machine, files, kind, pauseMs, isFrozen } = manifest
  const bytesOf = (isCounted: (name: string) => boolean) =>
    files.filter(({ name }) => isCounted(name)).reduce((sum, { allocatedBytes }) => sum + allocatedBytes, 0)
  const { memory, devices } = snapshotFiles
  return {
    id: record.id,
    name: record.name,
    purpose: record.purpose === 'template' ? 'template' : 'snapshot',
    ...{ kind, base: record.base ?? null },
    ...{ sandbox: record.sandbox, sandboxName: sandbox.name, image: image.reference },
    ...{ vcpu: shape.vcpu, memoryMib: shape.memoryMib, diskMib: shape.diskMib, metadata: record.metadata },
    vmm: `${machine.vmm} ${machine.version}`,
    pauseMs,
    bytes: {
      memory: bytesOf((name) => name === memory) + (kind === 'diff' ? await keptWholeBytes(host, record.id) : 0),
      devices: bytesOf((name) => name === devices),
      disk: bytesOf((name) => name !== memory && name !== devices),
    },
    restoreCopyBytes: await restoreCopyBytes(host, host.store.snapshots.folderOf(record.id), manifest),
    isFrozen,
    createdAt: record.createdAt,
    usedAt: record.usedAt ?? null,
    usedBy: await host.store.runningOf(record.id),
  }
}
