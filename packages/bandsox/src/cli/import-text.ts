/** The report of an import as a person reads it. Pure. */
import { printableLine } from '@bandsox/sdk'
import type { ImportedVm, ImportReport } from '../sandbox/import/import-storage.js'
import { counted, sizeText } from './text.js'

export function importText(report: ImportReport): string {
  const { vms, conflicts, problems, dryRun, neededBytes, freeBytes, numbers } = report
  const { cids, ports } = numbers
  const isShort = neededBytes > freeBytes
  return [
    ...problems,
    ...vms.flatMap(vmLines),
    ...conflicts.map(conflictLine),
    ...(dryRun
      ? [`a dry run: nothing was imported; ${sizeText(neededBytes)} are needed, ${sizeText(freeBytes)} are free`]
      : [`next CID: ${cids.free_cids[0] ?? cids.next_cid}; next port: ${ports.next_port}`]),
    ...(dryRun && isShort ? ['there is not enough room: it would be refused'] : []),
    totalLine(vms),
  ]
    .map(printableLine)
    .join('\n')
}

function vmLines({ outcome, earlierId, file, name, sandbox, pid, reason, notes }: ImportedVm): string[] {
  const what = `${earlierId ?? `metadata/${file}`}${name === undefined ? '' : ` (${name})`}`
  const became = {
    imported: `as ${sandbox}: bandsox vm start ${earlierId}`,
    importable: 'would be imported',
    present: `already imported as ${sandbox}`,
    running: `it runs, as process ${pid}: stop it there, and import again`,
    refused: reason,
    failed: reason,
  }[outcome]
  return [`${outcome.padEnd(10)} ${what}: ${became}`, ...notes.map((note) => `${' '.repeat(11)}note: ${note}`)]
}

function conflictLine({ number, value, heldBy, dead }: ImportReport['conflicts'][number]): string {
  const each = (ids: string[]) => ids.join(', ')
  if (heldBy.length === 0) return `${number} ${value}: dead records ${each(dead)} had it, and none holds it`
  const losers =
    dead.length === 0
      ? ''
      : dead.length === 1
        ? `; dead record ${each(dead)} had it too, and gets none`
        : `; dead records ${each(dead)} had it too, and get none`
  return `${number} ${value}: held by ${each(heldBy)}, which ${heldBy.length === 1 ? 'runs' : 'run'}${losers}`
}

function totalLine(vms: readonly ImportedVm[]): string {
  const count = (outcome: ImportedVm['outcome']) => vms.filter((vm) => vm.outcome === outcome).length
  const parts = (['imported', 'importable', 'present', 'running', 'refused', 'failed'] as const)
    .map((outcome) => [outcome, count(outcome)] as const)
    .filter(([, number]) => number > 0)
    .map(([outcome, number]) => `${number} ${outcome}`)
  return `Total: ${counted(vms.length, 'VM')}${parts.length === 0 ? '' : `: ${parts.join(', ')}`}`
}
