/** Changes what is told of a sandbox, and what it may take of its host. */
import { BandSoxError, type Limits, type Operation, requireAllowed, type SandboxChanges } from '@bandsox/sdk'
import type { SandboxRecord } from '../store/record.js'
import { checkedMemory, checkedVcpu } from './create-options.js'
import { changedLabels, checkedMetadata } from './description.js'
import type { Host } from './host.js'
import { checkedLimits, requireKept } from './limits.js'
import { claimSettled, isLive } from './settle.js'

/** @throws as `Sandbox.update`. All is checked before anything is changed; the machine itself comes first, and may refuse. */
export async function changeSandbox(host: Host, id: string, changes: SandboxChanges): Promise<void> {
  const { labels, metadata, limits, vcpu, memoryMib } = changes
  if (vcpu !== undefined) checkedVcpu(vcpu)
  if (memoryMib !== undefined) checkedMemory(memoryMib)
  if (metadata !== undefined) checkedMetadata(metadata)
  const needed = operationsFor(changes)
  if (needed.length === 0) throw new BandSoxError('bad-request', `nothing to change of sandbox ${id} was given`)
  const claim = await claimSettled(host, id, 'update')
  try {
    const { record } = claim
    for (const operation of needed) requireAllowed(operation, id, record.state)
    const newLabels = labels === undefined ? record.labels : changedLabels(record.labels, labels)
    const newLimits = limits === undefined ? record.limits : checkedLimits(limits, record.limits)
    if (limits !== undefined) await requireKept(newLimits)
    if (isLive(record.state)) await changeMachine(host, record, limits === undefined ? undefined : newLimits, memoryMib)
    await host.store.describe(id, () => ({
      labels: newLabels,
      limits: newLimits,
      ...(metadata !== undefined && { metadata }),
      ...(vcpu !== undefined && { vcpu }),
      // What a running guest gives back it can take again: it counts with all that it was started with.
      ...(memoryMib !== undefined && !isLive(record.state) && { memoryMib }),
    }))
    host.info(`updated ${id}`)
  } finally {
    await claim.release()
  }
}

async function changeMachine(
  host: Host,
  record: SandboxRecord,
  limits: Limits | undefined,
  memoryMib: number | undefined,
): Promise<void> {
  if (memoryMib !== undefined && memoryMib > record.memoryMib)
    throw new BandSoxError(
      'wrong-state',
      `cannot give sandbox ${record.id} ${memoryMib} MiB while it runs: it was started with ${record.memoryMib} MiB`,
      { hint: `stop it first: bandsox vm stop ${record.id}` },
    )
  if (limits === undefined && memoryMib === undefined) return
  const machine = await host.vmm.attach(host.store.directoryOf(record.id))
  try {
    if (limits !== undefined) await machine.setLimits(limits)
    if (memoryMib !== undefined) {
      const given = await machine.setMemory(memoryMib)
      if (given > memoryMib)
        host.warn(`sandbox ${record.id} keeps ${given} MiB: its guest needs more than ${memoryMib} MiB`)
    }
  } finally {
    machine.close()
  }
}

function operationsFor({ labels, metadata, limits, vcpu, memoryMib }: SandboxChanges): Operation[] {
  return [
    ...(labels !== undefined || metadata !== undefined ? (['describe'] as const) : []),
    ...(limits !== undefined ? (['limit'] as const) : []),
    ...(memoryMib !== undefined ? (['limit'] as const) : []),
    ...(vcpu !== undefined ? (['reshape'] as const) : []),
  ]
}
