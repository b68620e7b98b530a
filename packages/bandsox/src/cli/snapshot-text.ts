/** Snapshots as a person reads them. Pure. */
import { printableLine, type SnapshotInfo } from '@bandsox/sdk'
import { durationText, sizeText, table } from './text.js'

export function snapshotListText(infos: SnapshotInfo[], noun = 'snapshot'): string {
  if (infos.length === 0) return `No ${noun}s found.`
  const rows = infos.map((info) => [
    ...[info.name ?? '-', info.id, statusText(info), info.image, `${info.memoryMib} MiB`],
    ...[sizeText(totalBytes(info)), sizeText(info.restoreCopyBytes), info.createdAt],
  ])
  const head = ['NAME', 'ID', 'STATUS', 'IMAGE', 'MEMORY', 'SIZE', 'RESTORE COPIES', 'CREATED']
  return `${table(head, rows)}\nTotal: ${infos.length} ${noun}(s)`
}

const totalBytes = ({ bytes }: SnapshotInfo): number => bytes.memory + bytes.devices + bytes.disk

function statusText({ purpose, kind, usedBy }: SnapshotInfo): string {
  const what = purpose === 'template' ? 'template' : kind === 'diff' ? 'diff' : 'ready'
  return usedBy.length === 0 ? what : `${what}, used by ${usedBy.length}`
}

export function snapshotShowText(info: SnapshotInfo): string {
  const { bytes, metadata } = info
  const rows = [
    ['id', info.id],
    ['name', info.name ?? '-'],
    ['kind', info.base === null ? info.kind : `${info.kind}, since ${info.base}`],
    ['of', `${info.sandbox}${info.sandboxName === undefined ? '' : ` (${info.sandboxName})`}`],
    ['image', info.image],
    ['shape', `${info.vcpu} vCPU, ${info.memoryMib} MiB memory, ${info.diskMib} MiB disk`],
    ['vmm', info.vmm],
    ['size', `memory ${sizeText(bytes.memory)}, devices ${sizeText(bytes.devices)}, disk ${sizeText(bytes.disk)}`],
    ['restore', `copies ${sizeText(info.restoreCopyBytes)}`],
    ['pause', `${durationText(info.pauseMs)}${info.isFrozen ? '' : ", the guest's programs not frozen before"}`],
    ['metadata', Object.keys(metadata).length === 0 ? '-' : JSON.stringify(metadata)],
    ['created', info.createdAt],
    ['last used', info.usedAt ?? '-'],
    ['used by', info.usedBy.length === 0 ? '-' : info.usedBy.join(', ')],
  ]
  return rows.map(([key = '', value = '']) => `${key.padEnd(10)} ${printableLine(value)}`).join('\n')
}
