/** Sandboxes as a person reads them. Pure. */
import { printableLine, type SandboxInfo } from '@bandsox/sdk'
import { durationText, sizeText, table } from './text.js'

export function listText(infos: SandboxInfo[]): string {
  if (infos.length === 0) return 'No VMs found.'
  const rows = infos.map((info) => [
    ...[info.name ?? '-', statusText(info), info.id, info.image],
    ...[String(info.vcpu), `${info.memoryMib} MiB`, info.createdAt],
  ])
  return `${table(['NAME', 'STATUS', 'ID', 'IMAGE', 'VCPU', 'MEMORY', 'CREATED'], rows)}\nTotal: ${infos.length} VM(s)`
}

/** The state, and what is being done to it: `running (stop)`. */
const statusText = ({ state, operation }: SandboxInfo): string =>
  operation === null ? state.kind : `${state.kind} (${operation.name})`

export function showText(info: SandboxInfo): string {
  const { state, operation, vsock, timings, labels, metadata } = info
  const reason = 'reason' in state && state.reason !== undefined ? `: ${state.reason}` : ''
  const stages = Object.entries(timings).map(([stage, ms]) => `${stage} ${durationText(ms)}`)
  const rows = [
    ['id', info.id],
    ['name', info.name ?? '-'],
    ['state', `${state.kind} since ${state.since}${reason}`],
    ...(operation === null
      ? []
      : [['operation', `${operation.name} since ${operation.since}, process ${operation.pid}`]]),
    ['image', info.image],
    ['shape', `${info.vcpu} vCPU, ${info.memoryMib} MiB memory, ${info.diskMib} MiB disk`],
    ['limits', limitsText(info)],
    ['vmm', `${info.vmm} (${info.accelerator})${info.vmmPid === null ? '' : `, process ${info.vmmPid}`}`],
    ['vsock', vsock === null ? 'none' : `CID ${vsock.cid}, port ${vsock.port}, by ${vsock.backend}`],
    [
      'labels',
      Object.entries(labels)
        .map(([key, value]) => `${key}=${value}`)
        .join(', ') || '-',
    ],
    ['metadata', Object.keys(metadata).length === 0 ? '-' : printableLine(JSON.stringify(metadata))],
    ['created', info.createdAt],
    ...(info.restoredFrom === null ? [] : [['restored', `from ${info.restoredFrom}`]]),
    ...(info.importedFrom === null ? [] : [['imported', `from the earlier project's ${info.importedFrom}`]]),
    ['directory', info.directory],
    ['start', stages.join(', ')],
  ]
  return rows.map(([key = '', value = '']) => `${key.padEnd(10)} ${value}`).join('\n')
}

function limitsText({ limits: { cpus, diskBytesPerSecond, diskOperationsPerSecond } }: SandboxInfo): string {
  const parts = [
    ...(cpus === null ? [] : [`${cpus} CPUs`]),
    ...(diskBytesPerSecond === null ? [] : [`disk ${sizeText(diskBytesPerSecond)}/s`]),
    ...(diskOperationsPerSecond === null ? [] : [`${diskOperationsPerSecond} disk operations/s`]),
  ]
  return parts.length === 0 ? 'none' : parts.join(', ')
}
