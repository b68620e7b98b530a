/** What this host is, and how much of it is given to sandboxes. */
import { availableParallelism, release } from 'node:os'
import { messageOf, type StateName } from '@bandsox/sdk'
import { findFirecracker } from '../vmm/firecracker/host.js'
import { type HostTools, probeKvm } from '../vmm/host.js'
import { findQemu, findVsockBackend } from '../vmm/qemu/host.js'
import { hostMemoryMib } from './admission.js'
import type { Host } from './host.js'

export interface HostInfo {
  storage: string
  kernel: string
  cpus: number
  memoryMib: number
  /** What all running sandboxes may have together. */
  memoryBoundMib: number
  memoryGivenMib: number
  vcpusGiven: number
  sandboxes: Partial<Record<StateName, number>>
  images: number
  vmm: string
  accelerator: string
  vsock: string
}

export async function hostInfo(host: Host, tools: HostTools): Promise<HostInfo> {
  const records = await host.store.list()
  const running = records.filter(({ cid }) => cid !== null)
  const states: Partial<Record<StateName, number>> = {}
  for (const { state } of records) states[state.kind] = (states[state.kind] ?? 0) + 1
  const memoryMib = await hostMemoryMib()
  const { memoryOvercommit } = (await host.configuration()).host
  const kvm = await probeKvm(tools)
  const isFirecracker = (await host.vmmChoice()).name === 'firecracker'
  const isAccelerated = isFirecracker ? kvm.usable : kvm.groups !== undefined
  return {
    storage: host.store.root,
    kernel: release(),
    cpus: availableParallelism(),
    memoryMib,
    memoryBoundMib: Math.floor(memoryMib * memoryOvercommit),
    memoryGivenMib: running.reduce((sum, each) => sum + each.memoryMib, 0),
    vcpusGiven: running.reduce((sum, { vcpu }) => sum + vcpu, 0),
    sandboxes: states,
    images: (await host.images.list()).length,
    vmm: await orReason(async () => {
      const { version } = isFirecracker ? await findFirecracker(tools) : await findQemu(tools)
      return isFirecracker ? `Firecracker ${version}` : version
    }),
    accelerator: isAccelerated ? 'kvm' : 'tcg',
    vsock: isFirecracker ? 'vmm' : await orReason(async () => (await findVsockBackend(tools)).kind),
  }
}

/** One thing that is missing must not hide the rest. */
async function orReason(find: () => Promise<string>): Promise<string> {
  try {
    return await find()
  } catch (error) {
    return `none: ${messageOf(error)}`
  }
}
