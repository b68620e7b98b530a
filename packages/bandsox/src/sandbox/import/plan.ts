/** Decides what becomes of each earlier VM, and with which numbers ours go on. Pure. */
import { type Limits, messageOf } from '@bandsox/sdk'
import { FIRST_CID, FIRST_PORT, LAST_PORT } from '../../store/numbers.js'
import type { EarlierRecord } from './earlier-record.js'
import type { EarlierDisk, EarlierVm } from './earlier-storage.js'
import { type MendedRecord, mendRecord } from './mend.js'

export interface PlanInput {
  vms: readonly EarlierVm[]
  nextCid: number | undefined
  nextPort: number | undefined
  /** Processes of those that really run, by their ids. */
  running: ReadonlyMap<string, number>
  /** Our sandboxes that were imported before, by their earlier ids. */
  present: ReadonlyMap<string, string>
  defaultLimits: Limits
  now: Date
}

export type Decision = { record: EarlierRecord; notes: string[] } & (
  | { kind: 'import'; mended: MendedRecord; disk: EarlierDisk }
  | { kind: 'present'; sandbox: string }
  /** Its disk is in use. */
  | { kind: 'running'; pid: number }
  | { kind: 'refused'; reason: string }
)

/** A number that several records claim. */
export interface NumberConflict {
  number: 'CID' | 'port'
  value: number
  /** Ids of those that really run. VMs that were restored from one snapshot share theirs, which did no harm there. */
  heldBy: string[]
  /** Ids of those that do not: they get none. */
  dead: string[]
}

export interface Plan {
  decisions: Decision[]
  conflicts: NumberConflict[]
  /** The first ones that the earlier project has not given. */
  numbersFrom: { cid: number; port: number }
}

export function planImport(input: PlanInput): Plan {
  const records = input.vms.map(({ record }) => record)
  const conflictsOf = (number: 'CID' | 'port', key: 'cid' | 'port') =>
    conflicts(records, input.running, number, (record) => record[key])
  return {
    decisions: input.vms.map((vm) => decide(vm, input)),
    conflicts: [...conflictsOf('CID', 'cid'), ...conflictsOf('port', 'port')],
    numbersFrom: numbersFrom(input, records),
  }
}

function decide({ record, disk, notes: found }: EarlierVm, input: PlanInput): Decision {
  const sandbox = input.present.get(record.id)
  if (sandbox !== undefined) return { kind: 'present', record, sandbox, notes: [] }
  const pid = input.running.get(record.id)
  if (pid !== undefined) return { kind: 'running', record, pid, notes: [] }
  // Without a disk it could never be started, and once it was here the disk could not be brought later.
  if ('problem' in disk) return { kind: 'refused', record, reason: disk.problem, notes: [...found] }
  try {
    const mended = mendRecord(record, input)
    const stale = ['running', 'paused'].includes(record.status ?? '')
      ? [`it was recorded as ${record.status}, and nothing of it runs`]
      : []
    return { kind: 'import', record, mended, disk, notes: [...stale, ...found, ...mended.notes] }
  } catch (error) {
    return { kind: 'refused', record, reason: messageOf(error), notes: [...found] }
  }
}

function conflicts(
  records: readonly EarlierRecord[],
  running: ReadonlyMap<string, number>,
  number: NumberConflict['number'],
  numberOf: (record: EarlierRecord) => number | null,
): NumberConflict[] {
  const claims = new Map<number, string[]>()
  for (const record of records) {
    const value = numberOf(record)
    if (value !== null) claims.set(value, [...(claims.get(value) ?? []), record.id])
  }
  return [...claims]
    .filter(([, ids]) => ids.length > 1)
    .sort(([one], [other]) => one - other)
    .map(([value, ids]) => ({
      ...{ number, value },
      heldBy: ids.filter((id) => running.has(id)),
      dead: ids.filter((id) => !running.has(id)),
    }))
}

/** What the allocators say, and what runs: the former were reset now and then while VMs ran. A dead record holds nothing. */
function numbersFrom(
  { nextCid = FIRST_CID, nextPort = FIRST_PORT, running }: PlanInput,
  records: readonly EarlierRecord[],
): { cid: number; port: number } {
  const held = records.filter(({ id }) => running.has(id))
  const cids = held.flatMap(({ cid }) => (cid === null ? [] : [cid + 1]))
  const ports = held.flatMap(({ port }) => (port === null ? [] : [port + 1]))
  const port = Math.max(nextPort, ...ports)
  return { cid: Math.max(nextCid, ...cids), port: port > LAST_PORT ? FIRST_PORT : port }
}
