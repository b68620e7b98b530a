/** What is told of a sandbox to those who ask. */
import type { SandboxInfo } from '@bandsox/sdk'
import { readRun, type ShimRecords } from '../process/shim.js'
import type { MachineRecord, SandboxRecord } from '../store/record.js'
import type { Host } from './host.js'
import { isLive } from './settle.js'

/** @param run What there is of shim and VMM, if the caller has just looked. */
export async function sandboxInfo(host: Host, record: SandboxRecord, run?: ShimRecords): Promise<SandboxInfo> {
  const directory = host.store.directoryOf(record.id)
  const { machine, cid, port, operation } = record
  return {
    id: record.id,
    name: record.name,
    image: record.image.reference,
    state: record.state,
    operation:
      operation === undefined ? null : { name: operation.name, since: operation.since, pid: operation.holder.pid },
    labels: record.labels,
    metadata: record.metadata,
    limits: record.limits,
    vcpu: record.vcpu,
    memoryMib: record.memoryMib,
    diskMib: record.diskMib,
    vmm: machine === undefined ? '' : describeVmm(machine),
    accelerator: machine?.accelerator ?? '',
    vsock: machine?.vsock && cid !== null && port !== null ? { cid, port, backend: machine.vsock.backend } : null,
    vmmPid: isLive(record.state) ? vmmPid(run ?? (await readRun(directory))) : null,
    createdAt: record.createdAt,
    restoredFrom: record.restoredFrom ?? null,
    importedFrom: record.importedFrom ?? null,
    directory,
    timings: record.timings,
  }
}

const vmmPid = ({ run, vmmAlive }: ShimRecords): number | null => (vmmAlive && run !== undefined ? run.vmm.pid : null)

/** Of the last start. */
function describeVmm({ vmm, version, jailed, jailReason }: MachineRecord): string {
  if (jailed === undefined) return `${vmm} ${version}`
  return `${vmm} ${version}, ${jailed ? 'jailed' : `not jailed: ${jailReason ?? 'unknown'}`}`
}
