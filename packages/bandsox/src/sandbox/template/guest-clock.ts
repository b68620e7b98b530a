/**
 * Whether a guest's clock runs as its host's does. Under emulation a guest measures its processor's clock once, when it boots, and on a busy
 * host it may measure wrong: then its seconds are others than ours, in every machine that goes on from it.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError } from '@bandsox/sdk'
import type { Agent } from '../../guest/agent.js'

const TRIES = 3
const OBSERVED_MS = 1_000
/** What a busy host delays an answer by is a part of it. */
const MOST_APART = 0.02

/** @throws `boot-failed` when they are apart, every time. */
export async function requireSteadyClock(agent: Agent, signal?: AbortSignal): Promise<void> {
  let ratio = 1
  for (let attempt = 0; attempt < TRIES; attempt++) {
    ratio = await clockRatio(agent, signal)
    if (Math.abs(ratio - 1) <= MOST_APART) return
  }
  throw new BandSoxError('boot-failed', `the guest's clock runs ${ratio.toFixed(3)} times as fast as the host's`, {
    hint: 'it measured its processor wrong when it booted, as on a host that is busy: try again',
  })
}

/** The guest's milliseconds for each of the host's. */
async function clockRatio(agent: Agent, signal: AbortSignal | undefined): Promise<number> {
  const begin = await readClocks(agent, signal)
  await delay(OBSERVED_MS, undefined, signal === undefined ? {} : { signal })
  const end = await readClocks(agent, signal)
  return (end.guestMs - begin.guestMs) / (end.hostMs - begin.hostMs)
}

async function readClocks(agent: Agent, signal: AbortSignal | undefined): Promise<{ guestMs: number; hostMs: number }> {
  return await agent.use(
    async (connection) => {
      const asked = performance.now()
      connection.send({ type: 'ping' })
      const { uptimeMs } = await connection.receiveMessage('pong', { about: 'tell its time', signal })
      return { guestMs: uptimeMs, hostMs: (asked + performance.now()) / 2 }
    },
    { signal },
  )
}
