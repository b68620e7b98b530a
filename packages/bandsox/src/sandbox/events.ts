/** What has happened to the sandboxes of this host, and what happens. */
import { setTimeout as delay } from 'node:timers/promises'
import { messageOf, type SandboxEvent } from '@bandsox/sdk'
import type { Host } from './host.js'
import { isLive, settle } from './settle.js'

/** Other processes write events, and nobody announces them; and a VMM's end is looked for. */
const POLL_MS = 200
const SETTLE_EVERY = 5

export async function* sandboxEvents(
  host: Host,
  { follow = false, after = 0, signal }: { follow?: boolean; after?: number; signal?: AbortSignal },
): AsyncGenerator<SandboxEvent> {
  let last = after
  let polls = 0
  for (;;) {
    const events = await host.store.events(last)
    for (const event of events) {
      yield event
      last = event.sequence
    }
    if (events.length > 0) continue
    if (!follow || signal?.aborted) return
    await delay(POLL_MS, undefined, signal === undefined ? {} : { signal }).catch(() => undefined) // the look at `signal` follows
    if (signal?.aborted) return
    if (++polls % SETTLE_EVERY > 0) continue
    for (const record of await host.store.list()) {
      if (!isLive(record.state) && record.operation === undefined) continue
      // One that resists must not end the events of the others.
      await settle(host, record).catch((error: unknown) => host.debug(`sandbox ${record.id}: ${messageOf(error)}`))
    }
  }
}
