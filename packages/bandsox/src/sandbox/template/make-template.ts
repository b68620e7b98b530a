/** Makes what new sandboxes start from: boots one, looks whether it is as it should be, saves it, and restores that once. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import type { Claim } from '../../store/sandbox-store.js'
import { bootClaimed, type NewSandbox } from '../create.js'
import type { Host } from '../host.js'
import { destroyClaimed } from '../settle.js'
import { type Restored, restoreClaimed } from '../snapshot/restore.js'
import { type Restorable, saveInto, withUnfinished } from '../snapshot/take.js'
import { requireSteadyClock } from './guest-clock.js'
import { templateKey } from './template-key.js'
import { warmUp } from './warm-up.js'

/** Of one that is only there to be saved, or to be tried: nobody sees it, and when its process dies it goes. */
const MAKING = 'template'

/**
 * @returns False when there is one already, or somebody makes it.
 * @throws what a start, a snapshot and a restore throw; `boot-failed` for a guest whose clock is wrong. It is not tried again for a while.
 */
export async function makeTemplate(host: Host, wanted: NewSandbox, signal?: AbortSignal): Promise<boolean> {
  const key = await templateKey(host, wanted.record)
  if ((await host.store.snapshots.template(key)) !== undefined) return false
  try {
    await bootAndSave(host, key, wanted, signal)
    await makeRoomForTemplates(host, key)
    return true
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'busy') return false
    signal?.throwIfAborted()
    await host.store.snapshots.templateFailed(key, messageOf(error))
    throw error
  }
}

async function bootAndSave(
  host: Host,
  key: string,
  wanted: NewSandbox,
  signal: AbortSignal | undefined,
): Promise<void> {
  const entry = { name: undefined, metadata: {}, purpose: 'template' as const, templateKey: key, base: undefined }
  const id = wanted.record.id
  const options = signal === undefined ? {} : { signal }
  // Entered before anything is booted: of several who want it one makes it.
  await withUnfinished(host, wanted.record, entry, options, async (unfinished) => {
    const hidden = { ...wanted, record: { ...wanted.record, pool: MAKING } }
    const source = await bootClaimed(host, hidden, { signal, operation: MAKING })
    try {
      await warmUp(source.agent, signal)
      await requireSteadyClock(source.agent, signal)
      const taken = await saveInto(host, source.record, source.agent, unfinished, options)
      const moment = { id, title: 'a new template', folder: unfinished.folder, manifest: taken.manifest }
      await tryOut(host, moment, signal)
      const { id: template } = await unfinished.publish(taken)
      host.info(`made template ${template} of ${wanted.record.image.reference}`)
    } finally {
      await giveUp(host, source)
    }
  })
}

/** What cannot be restored is no template. */
async function tryOut(host: Host, moment: Restorable, signal: AbortSignal | undefined): Promise<void> {
  const as = { pool: MAKING }
  const restored = await restoreClaimed(host, moment, signal === undefined ? {} : { signal }, { as, operation: MAKING })
  try {
    await warmUp(restored.agent, signal)
    await requireSteadyClock(restored.agent, signal)
  } finally {
    await giveUp(host, restored)
  }
}

/** Its row goes with it, and so the claim on it. */
async function giveUp(host: Host, { agent, claim }: Restored & { claim: Claim }): Promise<void> {
  agent.close()
  await destroyClaimed(host, claim)
}

/** The least recently used ones go, beyond what the configuration allows. */
async function makeRoomForTemplates(host: Host, kept: string): Promise<void> {
  const { max } = (await host.configuration()).templates
  const templates = (await host.store.snapshots.list(['template'])).filter(({ templateKey: key }) => key !== kept)
  const byUse = templates.sort((one, other) => lastUse(one).localeCompare(lastUse(other)))
  for (const { id } of byUse.slice(0, Math.max(0, templates.length + 1 - max))) {
    try {
      await host.store.snapshots.remove(id)
      host.info(`removed template ${id}, which was not used for the longest time`)
    } catch (error) {
      if (!(error instanceof BandSoxError && error.code === 'snapshot-in-use')) throw error
      host.debug(messageOf(error)) // somebody's snapshots build on it
    }
  }
}

const lastUse = ({ usedAt, createdAt }: { usedAt: string | undefined; createdAt: string }): string =>
  usedAt ?? createdAt
