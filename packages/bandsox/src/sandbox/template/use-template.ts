/** Starts a new sandbox from a template, where there is one; and has one made, where there is none. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import type { Agent } from '../../guest/agent.js'
import type { SandboxRecord } from '../../store/record.js'
import type { NewSandbox } from '../create.js'
import type { Host } from '../host.js'
import { restoreSnapshot } from '../snapshot/restore.js'
import type { StageClock } from '../stage-clock.js'
import { templateKey } from './template-key.js'

/** After a try that failed, so long none is made. */
const FAILURE_KEPT_MS = 10 * 60 * 1000
/** What speaks against a template, and not against the sandbox. */
export const FAULTS_OF_THE_TEMPLATE: readonly string[] = [
  'snapshot-damaged',
  'not-found', // another process has removed it
  'snapshot-incompatible',
  'vmm-control',
  'vmm-failed',
  'boot-failed',
  'agent-unreachable',
]

/**
 * @returns undefined when there is none that could be used: the sandbox is to be booted then.
 * @throws what speaks against the sandbox itself; `signal.reason`.
 */
export async function startFromTemplate(
  host: Host,
  wanted: NewSandbox,
  { clock, signal }: { clock: StageClock; signal: AbortSignal | undefined },
): Promise<{ record: SandboxRecord; agent: Agent } | undefined> {
  const key = await templateKey(host, wanted.record)
  const template = await host.store.snapshots.template(key)
  if (template?.state !== 'ready') return undefined
  const { bootTimeoutMs, unique, record } = wanted
  try {
    return await restoreSnapshot(
      host,
      template,
      { bootTimeoutMs, unique, ...(signal !== undefined && { signal }) },
      { as: { ...record, restoredFrom: template.id }, clock, operation: 'create' },
    )
  } catch (error) {
    signal?.throwIfAborted()
    if (!(error instanceof BandSoxError && FAULTS_OF_THE_TEMPLATE.includes(error.code))) throw error
    host.warn(`template ${template.id} is of no use any more, and is removed: ${messageOf(error)}`)
    await host.store.snapshots.remove(template.id).catch((failure: unknown) => host.debug(messageOf(failure)))
    return undefined
  }
}

/** Whether one should be made now: none is there, nobody makes one, and the last try has not just failed. */
export async function isTemplateWanted(host: Host, wanted: NewSandbox): Promise<boolean> {
  if (!(await host.configuration()).templates.enabled) return false
  const key = await templateKey(host, wanted.record)
  if ((await host.store.snapshots.template(key)) !== undefined) return false
  return (await host.store.snapshots.templateFailure(key, new Date(Date.now() - FAILURE_KEPT_MS))) === undefined
}
