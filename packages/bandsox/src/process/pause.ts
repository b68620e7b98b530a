/** A pause that a signal ends, with its own reason: the timer of Node rejects with an AbortError. */
import { setTimeout as sleep } from 'node:timers/promises'

/** @throws `signal.reason`. */
export async function pause(ms: number, signal?: AbortSignal): Promise<void> {
  try {
    await sleep(ms, undefined, signal === undefined ? {} : { signal })
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  }
}
