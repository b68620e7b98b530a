/** Starts a sandbox that was stopped: a new machine with the disk that it had. */
import { access } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, messageOf, type StartOptions } from '@bandsox/sdk'
import type { Agent } from '../guest/agent.js'
import type { SandboxRecord } from '../store/record.js'
import { checkedBootTimeout } from './create-options.js'
import { RESUME_BYTES, requireFreeSpace } from './free-space.js'
import { type Host, machineFiles } from './host.js'
import { Releases } from './releases.js'
import { stateNow } from './settle.js'
import { linkBootFiles, startMachine } from './start-machine.js'

/**
 * The caller has the claim on it. On failure it stays what it was, with its disk.
 *
 * @throws `bad-request`, `storage-unusable`, `no-space`, what {@link startMachine} throws, or `options.signal`'s reason.
 */
export async function startSandbox(
  host: Host,
  record: SandboxRecord,
  options: StartOptions,
): Promise<{ agent: Agent; record: SandboxRecord }> {
  const bootTimeoutMs = checkedBootTimeout(options.bootTimeoutMs)
  options.signal?.throwIfAborted()
  await requireDisk(host, record)
  await requireFreeSpace(host.store.root, RESUME_BYTES, `sandbox ${record.id} to start`)
  const releases = new Releases()
  try {
    await linkBootFiles(host, record.id)
    const { agent, facts, timings } = await startMachine(host, record, {
      ...{ bootTimeoutMs, signal: options.signal, releases, tracksChanges: await tracksStill(host, record) },
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

/** As it was asked for at first, unless another VMM has taken over, which cannot. */
async function tracksStill(host: Host, { machine }: SandboxRecord): Promise<boolean | undefined> {
  if (machine?.tracksChanges !== true) return undefined
  return (await host.vmm.capabilities()).states.includes('diff')
}

/** @throws `storage-unusable` when somebody has removed its folder, or a loss of power has. */
async function requireDisk(host: Host, { id }: SandboxRecord): Promise<void> {
  const disk = path.join(host.store.directoryOf(id), machineFiles.overlay)
  try {
    await access(disk)
  } catch (error) {
    throw new BandSoxError(
      'storage-unusable',
      `cannot start sandbox ${id}: its disk is not there (${messageOf(error)})`,
      {
        cause: error,
        hint: `nothing of it is left to start: bandsox vm delete ${id}`,
      },
    )
  }
}
