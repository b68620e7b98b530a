/**
 * Whether a guest's clock runs as its host's does. Under emulation a guest measures its processor's clock once, when it boots, and on a busy
 * host it may measure wrong: then its seconds are others than ours, in every machine that goes on from it.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError } from '@bandsox/sdk'
import type { Agent } from '../../guest/agent.js'
import { type CommonMoment, commonMoment } from '../../guest/moment.js'

const TRIES = 3
/** The longer it is looked at, the less an answer's way counts that a busy host delays. */
const OBSERVED_MS = 1_000
const MOST_OBSERVED_MS = 4_000
const MOST_APART = 0.02
const ANSWER_MS = 30_000

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

/** The guest's milliseconds for each of the host's, as sure as {@link MOST_APART} asks for, or as it can be had in time. */
async function clockRatio(agent: Agent, signal: AbortSignal | undefined): Promise<number> {
  const begin = await momentOf(agent, signal)
  for (;;) {
    await delay(OBSERVED_MS, undefined, signal === undefined ? {} : { signal })
    const end = await momentOf(agent, signal)
    const observedMs = end.hostMs - begin.hostMs
    const ratio = (end.uptimeMs - begin.uptimeMs) / observedMs
    const mostWrong = (begin.tookMs + end.tookMs) / 2 / observedMs
    const isSure = Math.abs(ratio - 1) + mostWrong <= MOST_APART || Math.abs(ratio - 1) - mostWrong > MOST_APART
    if (isSure || observedMs > MOST_OBSERVED_MS) return ratio
  }
}

async function momentOf(agent: Agent, signal: AbortSignal | undefined): Promise<CommonMoment> {
  return await agent.use((connection) => commonMoment(connection, { timeoutMs: ANSWER_MS, signal }), { signal })
}
