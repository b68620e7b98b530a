/** Starts a sandbox that was stopped: a new machine with the disk that it had. */
import type { StartOptions } from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import type { SandboxRecord } from '../store/record.js'
import { checkedBootTimeout } from './create-options.js'
import type { Host } from './host.js'
import { Releases } from './releases.js'
import { stateNow } from './settle.js'
import { linkBootFiles, startMachine } from './start-machine.js'

/**
 * The caller has the claim on it. On failure it stays what it was, with its disk.
 *
 * @throws `bad-request`, what {@link startMachine} throws, or `options.signal`'s reason.
 */
export async function startSandbox(
  host: Host,
  record: SandboxRecord,
  options: StartOptions,
): Promise<{ agent: Agent; record: SandboxRecord }> {
  const bootTimeoutMs = checkedBootTimeout(options.bootTimeoutMs)
  options.signal?.throwIfAborted()
  const releases = new Releases()
  try {
    await linkBootFiles(host, record.id)
    const { agent, facts, timings } = await startMachine(host, record, {
      ...{ bootTimeoutMs, signal: options.signal, releases },
    })
    const running = await host.store.transition(record.id, { state: stateNow('running'), machine: facts, timings })
    releases.forget()
    host.info(`started ${record.id}`)
    return { agent, record: running }
  } catch (error) {
    for (const failure of await releases.run()) host.warn(`after a failed start: ${failure}`)
    throw error
  }
}
