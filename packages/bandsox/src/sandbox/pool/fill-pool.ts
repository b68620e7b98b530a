/** Fills a pool with sandboxes that were restored from a template, and are ready to be anybody's; removes those that have waited too long. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import type { PoolRecord } from '../../store/pool-store.js'
import { createSandboxRecord, type NewSandbox } from '../create.js'
import type { Host } from '../host.js'
import { destroyClaimed, stateNow } from '../settle.js'
import { restoreClaimed } from '../snapshot/restore.js'
import { freezeForPause } from '../snapshot/standstill.js'
import { manifestOf } from '../snapshot/whole.js'
import { makeTemplate } from '../template/make-template.js'
import { templateKey } from '../template/template-key.js'
import { warmUp } from '../template/warm-up.js'

/** Of a sandbox on its way into a pool. */
const FILLING = 'pool'

/**
 * @returns How many were added, and removed; undefined while another process fills it, or when there is no such pool.
 * @throws what making a template and restoring it throws; the pool says so.
 */
export async function fillPool(
  host: Host,
  id: string,
  signal?: AbortSignal,
): Promise<{ added: number; removed: number } | undefined> {
  const release = await host.store.pools.holdForFilling(id)
  if (release === undefined) return undefined
  try {
    let removed = await removeStale(host, id, signal)
    let added = 0
    for (;;) {
      signal?.throwIfAborted()
      const pool = await host.store.pools.read(id)
      if (pool === undefined) break
      const { ready, making } = await host.store.pools.counts(id)
      if (ready + making >= pool.size) break
      await addOne(host, pool, signal)
      added++
    }
    // Removed or made smaller meanwhile: what was just being made then, whoever did that has left to us.
    const size = (await host.store.pools.read(id))?.size ?? 0
    removed += await removeMembers(host, (await host.store.pools.members(id)).slice(size), signal)
    await host.store.pools.failed(id, undefined)
    return { added, removed }
  } catch (error) {
    if (!signal?.aborted) await host.store.pools.failed(id, messageOf(error))
    throw error
  } finally {
    await release()
  }
}

/** Whether somebody should fill it: it lacks some, or some of it have waited too long. */
export async function needsFilling(host: Host, pool: PoolRecord): Promise<boolean> {
  const { ready, making } = await host.store.pools.counts(pool.id)
  return ready + making < pool.size || (await staleMembers(host, pool)).length > 0
}

async function addOne(host: Host, pool: PoolRecord, signal: AbortSignal | undefined): Promise<void> {
  const wanted = await createSandboxRecord(host, pool.image, pool.options, signal)
  const template = await templateFor(host, wanted, signal)
  const folder = host.store.snapshots.folderOf(template.id)
  const manifest = await manifestOf(host, template)
  const moment = { id: template.id, title: `template ${template.id}`, folder, manifest }
  const options = signal === undefined ? {} : { signal }
  const as = { ...wanted.record, restoredFrom: template.id, pool: pool.id }
  const { record, agent, claim } = await restoreClaimed(host, moment, options, { as, operation: FILLING })
  try {
    await warmUp(agent, signal)
    const isFrozen = await freezeForPause(host, record.id, agent)
    agent.quiesce(new BandSoxError('link-lost', `sandbox ${record.id} waits in a pool`))
    const machine = await host.vmm.attach(host.store.directoryOf(record.id))
    await machine.pause().finally(() => machine.close())
    const facts = record.machine && { ...record.machine, isFrozen }
    await host.store.transition(record.id, {
      state: stateNow('paused'),
      ...(facts !== undefined && { machine: facts }),
    })
    agent.close()
  } catch (error) {
    agent.close()
    await destroyClaimed(host, claim)
    throw error
  }
  await claim.release() // from here on it may be somebody's, whatever becomes of us
  // Whoever removes a pool leaves those alone that are just being made.
  if ((await host.store.pools.read(pool.id)) === undefined) await removeMembers(host, [record.id])
  else host.info(`${record.id} waits in the pool of ${pool.image}`)
}

async function templateFor(host: Host, wanted: NewSandbox, signal: AbortSignal | undefined) {
  const key = await templateKey(host, wanted.record)
  for (let attempt = 0; attempt < 2; attempt++) {
    const template = await host.store.snapshots.template(key)
    if (template?.state === 'ready') return template
    if (!(await makeTemplate(host, wanted, signal)))
      throw new BandSoxError('busy', `another process makes the template of ${wanted.record.image.reference}`)
  }
  throw new BandSoxError('internal', `the template of ${wanted.record.image.reference} was made, and is not there`)
}

async function staleMembers(host: Host, pool: PoolRecord): Promise<string[]> {
  const oldest = new Date(Date.now() - pool.maxAgeMs).toISOString()
  const members = await Promise.all((await host.store.pools.members(pool.id)).map((id) => host.store.read(id)))
  return members.flatMap((member) =>
    member !== undefined &&
    member.operation === undefined &&
    (member.state.kind !== 'paused' || member.createdAt < oldest)
      ? [member.id]
      : [],
  )
}

async function removeStale(host: Host, id: string, signal: AbortSignal | undefined): Promise<number> {
  const pool = await host.store.pools.read(id)
  if (pool === undefined) return 0
  return await removeMembers(host, await staleMembers(host, pool), signal)
}

/** @returns How many; who takes one meanwhile has it. */
export async function removeMembers(host: Host, ids: readonly string[], signal?: AbortSignal): Promise<number> {
  let removed = 0
  for (const id of ids) {
    signal?.throwIfAborted()
    const claim = await host.store.takeOver(id)
    if (claim === undefined) continue
    // Taken just before: it is somebody's now.
    if (claim.record.pool === undefined) {
      await claim.release()
      continue
    }
    await claim.become('delete')
    await destroyClaimed(host, claim)
    removed++
  }
  return removed
}
