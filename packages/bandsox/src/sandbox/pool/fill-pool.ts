/** Fills a pool with sandboxes that were restored from a template, and are ready to be anybody's; removes those that have waited too long. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { isAlive } from '../../process/identity.js'
import { pause } from '../../process/pause.js'
import type { PoolRecord } from '../../store/pool-store.js'
import type { SnapshotRecord } from '../../store/snapshot-store.js'
import { createSandboxRecord, type NewSandbox } from '../create.js'
import type { Host } from '../host.js'
import { destroyClaimed, stateNow } from '../settle.js'
import { restoreClaimed } from '../snapshot/restore.js'
import { freezeForPause } from '../snapshot/standstill.js'
import { checkSnapshotFiles, manifestOf } from '../snapshot/whole.js'
import { makeTemplate } from '../template/make-template.js'
import { templateKey } from '../template/template-key.js'
import { FAULTS_OF_THE_TEMPLATE } from '../template/use-template.js'
import { warmUp } from '../template/warm-up.js'

/** Of a sandbox on its way into a pool. */
const FILLING = 'pool'
/** A slow host boots, saves and restores one in less. */
const TEMPLATE_PATIENCE_MS = 120_000
const TEMPLATE_POLL_MS = 100

/**
 * @returns How many were added, and removed; undefined while another process fills it, or when there is no such pool.
 * @throws what making a template and restoring it throws; the pool says so.
 */
export async function fillPool(
  host: Host,
  id: string,
  signal?: AbortSignal,
): Promise<{ added: number; removed: number } | undefined> {
  const done = { added: 0, removed: 0 }
  for (let isFirst = true; ; isFirst = false) {
    const release = await host.store.pools.holdForFilling(id)
    if (release === undefined) return isFirst ? undefined : done
    const { added, removed } = await fillHeld(host, id, signal).finally(release)
    done.added += added
    done.removed += removed
    // Who took one just before the release has started somebody else to fill it, who found us at it.
    if (!(await lacksSome(host, await host.store.pools.read(id)))) return done
  }
}

async function fillHeld(
  host: Host,
  id: string,
  signal: AbortSignal | undefined,
): Promise<{ added: number; removed: number }> {
  try {
    const stale = await removeStale(host, id, signal)
    for (let added = 0; ; added++) {
      signal?.throwIfAborted()
      const pool = await host.store.pools.read(id)
      if (pool === undefined || !(await lacksSome(host, pool))) {
        // Removed or made smaller meanwhile: what was just being made then, whoever did that has left to us.
        const tooMany = (await host.store.pools.members(id)).slice(pool?.size ?? 0)
        const removed = stale + (await removeMembers(host, tooMany, signal))
        await host.store.pools.failed(id, undefined)
        return { added, removed }
      }
      await addOne(host, pool, signal)
    }
  } catch (error) {
    if (!signal?.aborted) await host.store.pools.failed(id, messageOf(error))
    throw error
  }
}

async function lacksSome(host: Host, pool: PoolRecord | undefined): Promise<boolean> {
  if (pool === undefined) return false
  const { ready, making } = await host.store.pools.counts(pool.id)
  return ready + making < pool.size
}

/**
 * Whether somebody should fill it: it lacks some, or some of it have waited too long. Not while somebody does, nor after a try that
 * has failed: every command asks, and each would start another process.
 */
export async function needsFilling(host: Host, pool: PoolRecord): Promise<boolean> {
  if (pool.failure !== undefined || (pool.holder !== undefined && (await isAlive(pool.holder)))) return false
  return (await lacksSome(host, pool)) || (await staleMembers(host, pool)).length > 0
}

async function addOne(host: Host, pool: PoolRecord, signal: AbortSignal | undefined): Promise<void> {
  const wanted = await createSandboxRecord(host, pool.image, pool.options, signal)
  const { record, agent, claim } = await restoreTemplate(host, pool, wanted, signal)
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

/** From another one when the first is of no use, or is removed meanwhile. */
async function restoreTemplate(
  host: Host,
  pool: PoolRecord,
  wanted: NewSandbox,
  signal: AbortSignal | undefined,
): ReturnType<typeof restoreClaimed> {
  for (let isFirst = true; ; isFirst = false) {
    const template = await templateFor(host, wanted, signal)
    try {
      const manifest = await manifestOf(host, template)
      await checkSnapshotFiles(host, template, manifest, signal)
      const folder = host.store.snapshots.folderOf(template.id)
      const moment = { id: template.id, title: `template ${template.id}`, folder, manifest }
      const as = { ...wanted.record, restoredFrom: template.id, pool: pool.id }
      return await restoreClaimed(host, moment, { ...(signal && { signal }) }, { as, operation: FILLING })
    } catch (error) {
      signal?.throwIfAborted()
      if (!isFirst || !(await isOfNoUse(host, template, error))) throw error
    }
  }
}

/** Whether another template would do better; one that is damaged is removed. */
async function isOfNoUse(host: Host, { id }: SnapshotRecord, error: unknown): Promise<boolean> {
  if ((await host.store.snapshots.read(id)) === undefined) return true
  if (!(error instanceof BandSoxError && FAULTS_OF_THE_TEMPLATE.includes(error.code))) return false
  host.warn(`template ${id} is of no use any more, and is removed: ${messageOf(error)}`)
  await host.store.snapshots.remove(id)
  return true
}

async function templateFor(host: Host, wanted: NewSandbox, signal: AbortSignal | undefined) {
  const key = await templateKey(host, wanted.record)
  const deadline = performance.now() + TEMPLATE_PATIENCE_MS
  while (performance.now() < deadline) {
    const template = await host.store.snapshots.template(key)
    if (template?.state === 'ready') return template
    // A `create` that found none has had it begun.
    if (template !== undefined || !(await makeTemplate(host, wanted, signal))) await pause(TEMPLATE_POLL_MS, signal)
  }
  throw new BandSoxError('busy', `another process makes the template of ${wanted.record.image.reference}`)
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
