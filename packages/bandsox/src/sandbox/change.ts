/** Changes what is told of a sandbox, and what it may take of its host. */
import { BandSoxError, type Operation, requireAllowed, type SandboxChanges } from '@bandsox/sdk'
import { checkedMemory, checkedVcpu } from './create-options.js'
import { changedLabels, checkedMetadata } from './description.js'
import type { Host } from './host.js'
import { checkedLimits } from './limits.js'
import { claimSettled } from './settle.js'

/** @throws as `Sandbox.update`. Either all is changed or nothing. */
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
    await host.store.describe(id, () => ({
      labels: newLabels,
      limits: newLimits,
      ...(metadata !== undefined && { metadata }),
      ...(vcpu !== undefined && { vcpu }),
      ...(memoryMib !== undefined && { memoryMib }),
    }))
    host.info(`updated ${id}`)
  } finally {
    await claim.release()
  }
}

function operationsFor({ labels, metadata, limits, vcpu, memoryMib }: SandboxChanges): Operation[] {
  return [
    ...(labels !== undefined || metadata !== undefined ? (['describe'] as const) : []),
    ...(limits !== undefined ? (['limit'] as const) : []),
    ...(vcpu !== undefined || memoryMib !== undefined ? (['reshape'] as const) : []),
  ]
}
