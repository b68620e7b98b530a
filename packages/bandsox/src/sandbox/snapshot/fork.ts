/** Makes children of a running sandbox, which go on where it is. */
import { BandSoxError, type ForkOptions, messageOf } from '@bandsox/sdk'
import type { Agent } from '../../guest/agent.js'
import type { SandboxRecord } from '../../store/record.js'
import type { Claim } from '../../store/sandbox-store.js'
import { checkedName } from '../description.js'
import type { Host } from '../host.js'
import { destroyClaimed } from '../settle.js'
import { type Restored, restoreClaimed } from './restore.js'
import { withMoment } from './take.js'
import { requireTracking } from './tracking.js'

const MAX_CHILDREN = 100

export interface Child {
  record: SandboxRecord
  agent: Agent
}

/**
 * All of them, or none. The caller has the claim on the parent, which goes on as soon as its state is saved, whatever their number.
 *
 * @param goesOn Called when it does: what follows does not need it any more.
 * @throws `bad-request`, and as `takeSnapshot` and `restoreFrom`.
 */
export async function forkSandbox(
  host: Host,
  record: SandboxRecord,
  agent: Agent,
  { count = 1, name, ...options }: ForkOptions,
  goesOn: () => Promise<void>,
): Promise<Child[]> {
  if (!Number.isSafeInteger(count) || count < 1 || count > MAX_CHILDREN)
    throw new BandSoxError(
      'bad-request',
      `count: ${String(count)} is not allowed; it must be an integer from 1 to ${MAX_CHILDREN}`,
    )
  await requireTracking(host, options.tracksChanges, '--track-changes')
  const names = Array.from({ length: count }, (_, index) => {
    if (name === undefined) return undefined
    return checkedName(count === 1 ? name : `${name}-${index + 1}`)
  })
  return await withMoment(host, record, agent, options, async (moment) => {
    await goesOn()
    const made = await Promise.allSettled(
      names.map((each) => restoreClaimed(host, moment, { ...options, ...(each !== undefined && { name: each }) })),
    )
    const children = made.flatMap((each) => (each.status === 'fulfilled' ? [each.value] : []))
    const failed = made.find((each) => each.status === 'rejected')
    try {
      if (failed !== undefined) throw failed.reason
      // Until here they are nobody's: should we die, the next command removes them.
      await host.store.releaseTogether(children.map(({ record: { id } }) => id))
    } catch (error) {
      for (const child of children) await giveUp(host, child)
      throw error
    }
    const ids = children.map((child) => child.record.id).join(', ')
    const stood = `which stood still for ${moment.manifest.pauseMs} ms`
    host.info(`made ${children.length} of ${record.id}, ${stood}: ${ids}`)
    return children.map((child) => ({ ...child, record: { ...child.record, operation: undefined } }))
  })
}

async function giveUp(host: Host, { agent, claim }: Restored & { claim: Claim }): Promise<void> {
  agent.close()
  try {
    await destroyClaimed(host, claim)
  } catch (error) {
    host.warn(`after a failed fork: ${messageOf(error)}`)
  }
}
