/** Ways to a new sandbox that are quicker than to boot one, and what sees to it that there is one the next time. */
import { messageOf } from '@bandsox/sdk'
import type { NewSandbox, QuickStart } from './create.js'
import type { Host } from './host.js'
import { needsFilling } from './pool/fill-pool.js'
import { findPool, takeFromPool } from './pool/take-from-pool.js'
import { isTemplateWanted, startFromTemplate } from './template/use-template.js'

/** Starts processes of ours that outlive this one. What they do is on record: nobody waits for them. */
export interface BackgroundJobs {
  makeTemplate: (wanted: NewSandbox) => void
  fillPool: (id: string) => void
}

/** @param jobs Absent: none is started. */
export function quickStart(host: Host, jobs: BackgroundJobs | undefined): QuickStart {
  return {
    async start(wanted, options) {
      const pool = await findPool(host, wanted)
      if (pool !== undefined) {
        const taken = await takeFromPool(host, pool, wanted, options)
        // Also where none was left: what could not be filled the last time is tried again for who wants it.
        jobs?.fillPool(pool.id)
        if (taken !== undefined) return taken
      }
      if (!(await host.configuration()).templates.enabled) return undefined
      return await startFromTemplate(host, wanted, options)
    },
    async booted(wanted) {
      // The sandbox is there: what becomes of the next one's must not make a failure of it.
      try {
        if (jobs !== undefined && (await isTemplateWanted(host, wanted))) jobs.makeTemplate(wanted)
      } catch (error) {
        host.warn(`no template will be made of ${wanted.record.image.reference}: ${messageOf(error)}`)
      }
    },
  }
}

/** Has pools filled whose sandboxes have waited too long, or are gone. */
export async function refillPools(host: Host, jobs: BackgroundJobs | undefined): Promise<void> {
  if (jobs === undefined) return
  for (const pool of await host.store.pools.list()) if (await needsFilling(host, pool)) jobs.fillPool(pool.id)
}
