/** A sandbox whose machine's state lies on the disk, and nothing of it in memory; and its way back. */
import { mkdir, open, rename } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, isSystemError, type StartOptions } from '@bandsox/sdk'
import { z } from 'zod'
import type { Agent } from '../../guest/agent.js'
import { readJsonFile, writeJsonFile } from '../../process/json-file.js'
import type { SandboxRecord } from '../../store/record.js'
import { checkedBootTimeout } from '../create-options.js'
import { RESUME_BYTES, requireFreeSpace } from '../free-space.js'
import type { Host } from '../host.js'
import { Releases } from '../releases.js'
import { endMachine, stateNow } from '../settle.js'
import { startMachine } from '../start-machine.js'
import { requireCompatible } from './compatible.js'
import { writtenDisks } from './disk.js'
import { checkFiles, recordFiles, snapshotFiles, stateIn } from './files.js'
import { dropHibernated, hibernatedFolder, unfinishedFolder } from './hibernated-files.js'
import { fileSchema } from './manifest.js'
import { atStandstill, DEFAULT_HOOKS_MS } from './standstill.js'
import { saveTracked } from './tracking.js'

const DESCRIPTION = 'hibernated.json'

const descriptionSchema = z.strictObject({ port: z.int().positive(), files: z.array(fileSchema).max(8) })

/**
 * The caller has the claim on it.
 *
 * @throws what {@link atStandstill} throws, `no-space`; the sandbox goes on as before.
 */
export async function hibernateSandbox(
  host: Host,
  record: SandboxRecord,
  agent: Agent,
  signal: AbortSignal | undefined,
): Promise<void> {
  const { id, port } = record
  if (port === null) throw new BandSoxError('internal', `sandbox ${id} runs, and its record does not say how`)
  const [folder, unfinished] = [hibernatedFolder(host, id), unfinishedFolder(host, id)]
  await dropHibernated(host, id)
  await mkdir(unfinished, { mode: 0o700 })
  try {
    await atStandstill(host, record, agent, { signal }, async (machine, itEnds) => {
      await saveTracked(host, record, machine, unfinished, 'full', signal)
      const { files } = await recordFiles(host, unfinished, [snapshotFiles.memory, snapshotFiles.devices], signal)
      await writeJsonFile(path.join(unfinished, DESCRIPTION), { port, files })
      // Its disk is the state's other half: after a loss of power, neither may be older than the other.
      for (const disk of writtenDisks(record)) await sync(path.join(host.store.directoryOf(id), disk))
      await sync(unfinished)
      await rename(unfinished, folder)
      await sync(path.dirname(folder))
      signal?.throwIfAborted()
      // From here on it is hibernated, whatever becomes of us: its machine, which stands still, is nobody's any more.
      await host.store.transition(id, { state: stateNow('hibernated'), isDurable: true })
      itEnds()
    })
  } catch (error) {
    await dropHibernated(host, id)
    throw isSystemError(error, 'ENOSPC')
      ? new BandSoxError('no-space', `no space to hibernate sandbox ${id}; it goes on`, { cause: error })
      : error
  }
  await endMachine(host, record)
  await host.store.transition(id, { state: stateNow('hibernated'), releaseNumbers: true })
  host.info(`hibernated ${id}`)
}

/**
 * Loads its machine again. The caller has the claim on it. On failure it stays hibernated.
 *
 * @throws `snapshot-incompatible`, `snapshot-damaged`, what {@link startMachine} throws.
 */
export async function wakeSandbox(
  host: Host,
  record: SandboxRecord,
  options: StartOptions,
): Promise<{ agent: Agent; record: SandboxRecord }> {
  const { id, machine } = record
  const bootTimeoutMs = checkedBootTimeout(options.bootTimeoutMs)
  const folder = hibernatedFolder(host, id)
  const remedy = `its disk is still there: give the state up (bandsox vm stop ${id}), and start it`
  const description = await readJsonFile(path.join(folder, DESCRIPTION), descriptionSchema)
  if (description === undefined || machine === undefined)
    throw new BandSoxError('snapshot-damaged', `the state of the hibernated sandbox ${id} is not there any more`, {
      hint: remedy,
    })
  await requireCompatible(host, record, { machine }, `the hibernated sandbox ${id}`)
  const of = { folder, title: `the hibernated sandbox ${id}`, hint: remedy }
  await checkFiles(host, of, description.files, {}, { signal: options.signal })
  await requireFreeSpace(host.store.root, RESUME_BYTES, `sandbox ${id} to go on`)
  const releases = new Releases()
  try {
    const { agent, facts, timings } = await startMachine(host, record, {
      ...{ bootTimeoutMs, signal: options.signal, releases, tracksChanges: machine.tracksChanges },
      saved: { state: stateIn(folder), machine, port: description.port, hooksMs: DEFAULT_HOOKS_MS },
      // Before it writes to its disk, which then is not the one any more that belongs to the state.
      beforeRunning: async (now) => {
        const pending = { ...now, pendingPort: description.port }
        await host.store.transition(id, { state: stateNow('running'), machine: pending, isDurable: true })
        await dropHibernated(host, id)
        releases.forget()
      },
    })
    const running = await host.store.transition(id, { state: stateNow('running'), machine: facts, timings })
    host.info(`woke up ${id}`)
    return { agent, record: running }
  } catch (error) {
    for (const failure of await releases.run()) host.warn(`after a failed resume: ${failure}`)
    throw error
  }
}

async function sync(fileOrFolder: string): Promise<void> {
  await using handle = await open(fileOrFolder, 'r')
  await handle.sync()
}
