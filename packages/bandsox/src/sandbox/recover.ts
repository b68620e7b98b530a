/** What became of a machine whose links are lost. */
import { setTimeout as delay } from 'node:timers/promises'
import type { Recovery } from '../guest/agent.js'
import { readRun, standsStill } from '../process/shim.js'
import { interruptedBy } from '../store/operation.js'
import type { SandboxRecord } from '../store/record.js'
import type { Host } from './host.js'
import { settle } from './settle.js'

/** Nobody announces to everybody that a machine goes on: it is looked for. */
const POLL_MS = 50

/** Operations that hold the machine's links back until they are over, */
const HOLDING: readonly (string | undefined)[] = ['pause', 'resume', 'hibernate']
/** and those that hold them back for a moment of the time that they take. */
const HOLDING_FOR_A_MOMENT: readonly (string | undefined)[] = ['snapshot', 'fork', 'commit']

/**
 * Looks after a machine whose links are lost: a dead shim, through which they lead, is replaced; one that is paused, or about to be, or stands
 * still while it is saved, is waited for.
 */
export async function recover(host: Host, id: string, signal: AbortSignal | undefined): Promise<Recovery> {
  const directory = host.store.directoryOf(id)
  const found = await host.store.read(id)
  if (found === undefined) return 'gone'
  const { shimAlive } = await readRun(directory)
  // A dead shim is replaced by this; and its VMM may have stopped it by itself, as on a full disk, which nobody has written down yet.
  const record = !shimAlive || standsStill(directory) ? await settle(host, found) : found
  if (record === undefined) return 'gone'
  if (!isHeld(record) && !isHeldForAMoment(record)) {
    if (record.state.kind !== 'running') return 'gone'
    return shimAlive ? 'unchanged' : 'mended'
  }
  for (;;) {
    await delay(POLL_MS, undefined, signal && { signal }).catch(() => signal?.throwIfAborted())
    const before = await host.store.read(id)
    const now = before && (await settle(host, before)) // it may have been killed meanwhile
    if (now === undefined) return 'gone'
    if (isHeld(now)) continue
    if (now.state.kind !== 'running') return 'gone'
    if (!isHeldForAMoment(now)) return 'mended'
    if (!standsStill(directory)) return 'held'
  }
}

const isHeldForAMoment = ({ operation }: SandboxRecord): boolean =>
  HOLDING_FOR_A_MOMENT.includes(interruptedBy(operation?.name))

const isHeld = ({ state, operation }: SandboxRecord): boolean =>
  state.kind === 'paused' || HOLDING.includes(interruptedBy(operation?.name))
