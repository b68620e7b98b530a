/** What a guest's clock and the host's say at the same moment. */
import type { GuestConnection } from './connection.js'
import type { AskOptions } from './snapshots.js'

/** On a busy host an answer may be long on its way, and then says little: one that was not is all that is asked for, */
const GOOD_ANSWER_MS = 10
/** the best of so many does as well, */
const TRIES = 4
/** but where all of them were long, more are asked for, for so long. */
const BAD_ANSWER_MS = 40
const PATIENCE_MS = 500

export interface CommonMoment {
  /** Of the guest, since its boot. */
  uptimeMs: number
  /** Of this process, as `performance.now` has it. */
  hostMs: number
  /** Time of day of the host, µs. */
  timeUs: number
  /** How long the question and its answer were on their way: half of it is how wrong the moment may be. */
  tookMs: number
}

/** @returns The best of several tries: however long what tells it is on its way, the guest knows what has passed since. */
export async function commonMoment(connection: GuestConnection, options: AskOptions): Promise<CommonMoment> {
  const startedAt = performance.now()
  const isWorthAnother = (tries: number) =>
    tries < TRIES || (best.tookMs > BAD_ANSWER_MS && performance.now() - startedAt < PATIENCE_MS)
  let best = await askForTime(connection, options)
  for (let tries = 1; best.tookMs > GOOD_ANSWER_MS && isWorthAnother(tries); tries++) {
    const next = await askForTime(connection, options)
    if (next.tookMs < best.tookMs) best = next
  }
  return best
}

async function askForTime(connection: GuestConnection, options: AskOptions): Promise<CommonMoment> {
  const asked = performance.now()
  connection.send({ type: 'ping' })
  const { uptimeMs } = await connection.receiveMessage('pong', { ...options, about: 'tell its time' })
  const answered = performance.now()
  const tookMs = answered - asked
  // `Date.now` follows every correction of the host's clock, which `performance.timeOrigin` does not, but knows whole ms only.
  const timeUs = Date.now() * 1000 + 500 - Math.round(tookMs * 500)
  return { uptimeMs, hostMs: (asked + answered) / 2, timeUs, tookMs }
}
