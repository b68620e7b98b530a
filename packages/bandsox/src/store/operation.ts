/** One operation at a time on a sandbox, among all processes: a field of its row, which names the process that works on it. */
import { randomBytes } from 'node:crypto'
import { BandSoxError } from '@bandsox/sdk'
import { identifySelf, isAlive, isOutOfSight, isSameProcess } from '../process/identity.js'
import type { Tables } from './database.js'
import { type OperationHolder, operationColumns, type RecordedOperation } from './record.js'

/** An operation of this process. */
export async function newOperation(name: string): Promise<RecordedOperation> {
  return { name, since: new Date().toISOString(), token: randomBytes(9).toString('base64url'), holder: await self() }
}

let known: OperationHolder | undefined

/** This process, as a holder. */
export async function self(): Promise<OperationHolder> {
  known ??= await identifySelf() // it does not change, and every operation asks
  return known
}

/** What those are at who set right what others left. */
const SETTLING = 'cleanup'
const AFTER = `${SETTLING} after `

/** Name of the operation of who sets right what `interrupted` has left: should that one die as well, the next one knows. */
export const settlingAfter = (interrupted: string | undefined): string =>
  interrupted === undefined ? SETTLING : `${AFTER}${interrupted}`

export const isSettling = (name: string): boolean => name === SETTLING || name.startsWith(AFTER)

/** What a process that died at an operation of this name has left half-way: also when it was setting right what another had. */
export function interruptedBy(name: string | undefined): string | undefined {
  if (name === undefined || !isSettling(name)) return name
  return name === SETTLING ? undefined : name.slice(AFTER.length)
}

export const isInProgress = async (operation: RecordedOperation): Promise<boolean> => await isAlive(operation.holder)

/** As that of a process that is known to be dead: whoever comes next sets right what it left. */
export const abandoned = (operation: RecordedOperation): RecordedOperation => ({
  ...operation,
  token: `${operation.token}-abandoned`,
  holder: { ...operation.holder, bootId: 'gone' },
})

/** Puts `operation` in the place of `before`. @returns False when that is not there any more. */
export function replaceOperation(
  tables: Tables,
  id: string,
  before: RecordedOperation | undefined,
  operation: RecordedOperation | undefined,
): boolean {
  const changed = tables.change(
    `UPDATE sandboxes SET operation = $operation, operation_since = $operation_since, operation_token = $operation_token,
     holder = $holder WHERE id = $id AND operation_token IS $before`,
    { id, before: before?.token ?? null, ...operationColumns(operation) },
  )
  return changed === 1
}

/** Says who works on it, and what to do when that one cannot be seen from here. */
export async function busyError(id: string, { name, holder }: RecordedOperation): Promise<BandSoxError> {
  const own = isSameProcess(holder, await self()) ? 'this process' : `process ${holder.pid}`
  return new BandSoxError(
    'busy',
    `sandbox ${id} is busy: ${name} is in progress (${own})`,
    (await isOutOfSight(holder))
      ? { hint: `process ${holder.pid} is of another container; when it is gone: bandsox cleanup --forget ${id}` }
      : {},
  )
}
