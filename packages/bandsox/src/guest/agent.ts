/** The agent of one VM: connections to it by the first healthy link, kept for reuse while idle. */
import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises'
import { BandSoxError, messageOf } from '@bandsox/sdk'
import type { Link } from '../link/link.js'
import { ANSWER_TIMEOUT_MS, GuestConnection, type Hello } from './connection.js'

/** Enough for a few operations side by side; more would hold descriptors for nothing. */
const MAX_IDLE = 4
/** Between two tries while the guest boots: its listener appears at an unknown moment, and a try costs the guest little. */
const RETRY_MS = 20
/** A try during boot may hang unanswered in a device that the guest has not set up yet. */
const BOOT_TRY_MS = 1_000

export class Agent {
  /** In the driver's declared order. */
  readonly #links: readonly Link[]
  readonly #idle: GuestConnection[] = []
  readonly #inUse = new Set<GuestConnection>()
  #revive: () => Promise<boolean> = async () => false
  readonly #answerTimeoutMs: number
  #closed = false

  /** @param options.answerTimeoutMs How long the guest may leave us without the answer that it owes us. */
  constructor(links: readonly Link[], options: { answerTimeoutMs?: number } = {}) {
    this.#links = links
    this.#answerTimeoutMs = options.answerTimeoutMs ?? ANSWER_TIMEOUT_MS
  }

  /** @param revive Asked when every link refused: true when it has mended something, and another try is worth it. */
  onRefused(revive: () => Promise<boolean>): void {
    this.#revive = revive
  }

  /**
   * Runs one operation on a connection of its own. It is kept for the next one when the operation succeeded; after any failure
   * it is closed, which ends whatever the agent still does for it.
   */
  async use<T>(operation: (connection: GuestConnection) => Promise<T>, signal?: AbortSignal): Promise<T> {
    const connection = await this.acquire(signal)
    try {
      const result = await operation(connection)
      this.release(connection)
      return result
    } catch (error) {
      this.discard(connection, error)
      throw error
    }
  }

  /** A greeted connection; hand it back by `release` (in step) or `discard`. */
  async acquire(signal?: AbortSignal): Promise<GuestConnection> {
    signal?.throwIfAborted()
    if (this.#idle.length > 0) await hangUpsSeen()
    for (let idle = this.#idle.pop(); idle !== undefined; idle = this.#idle.pop()) {
      if (!idle.isOpen) continue
      idle.wake()
      this.#inUse.add(idle)
      return idle
    }
    const connection = await this.#connectOrRevive(signal)
    if (this.#closed) {
      connection.close()
      throw new BandSoxError('link-lost', 'the connection to the guest was closed while it was being made')
    }
    this.#inUse.add(connection)
    return connection
  }

  release(connection: GuestConnection): void {
    this.#inUse.delete(connection)
    if (this.#closed || !connection.isOpen || this.#idle.length >= MAX_IDLE) {
      connection.close()
      return
    }
    connection.rest()
    this.#idle.push(connection)
  }

  discard(connection: GuestConnection, reason?: unknown): void {
    this.#inUse.delete(connection)
    connection.close(reason)
  }

  /**
   * Waits until the agent answers a hello.
   *
   * @param options.signal Also ends the wait when the VM ended: pass a signal that says so.
   * @throws `agent-unreachable` after `timeoutMs`, with the last try's reason; `signal.reason`.
   */
  async waitUntilReady(options: { timeoutMs: number; signal?: AbortSignal }): Promise<Hello> {
    const deadline = performance.now() + options.timeoutMs
    let last: unknown
    for (;;) {
      const left = deadline - performance.now()
      if (left <= 0) {
        throw new BandSoxError('agent-unreachable', `no hello from the agent: ${messageOf(last)}`, { cause: last })
      }
      try {
        const connection = await this.#connect(options.signal, Math.ceil(Math.min(BOOT_TRY_MS, left)))
        this.release(connection)
        return connection.hello
      } catch (error) {
        options.signal?.throwIfAborted()
        if (!isWorthRetrying(error)) throw error
        last = error
      }
      await delay(Math.min(RETRY_MS, Math.max(left, 0)), undefined, { signal: options.signal }).catch(
        (error: unknown) => {
          options.signal?.throwIfAborted() // the caller's own reason rather than Node's AbortError
          throw error
        },
      )
    }
  }

  /** Closes every connection, and takes no new ones: before a pause, and at the end. */
  close(reason?: unknown): void {
    this.#closed = true
    for (const connection of [...this.#idle.splice(0), ...this.#inUse]) connection.close(reason)
    this.#inUse.clear()
  }

  async #connectOrRevive(signal: AbortSignal | undefined): Promise<GuestConnection> {
    try {
      return await this.#connect(signal)
    } catch (error) {
      signal?.throwIfAborted()
      if (isWorthRetrying(error) && (await this.#revive())) return await this.#connect(signal)
      throw error
    }
  }

  async #connect(signal?: AbortSignal, timeoutMs?: number): Promise<GuestConnection> {
    let failure: unknown = new BandSoxError('agent-unreachable', 'the VM has no link to its agent')
    for (const link of this.#links) {
      try {
        return await GuestConnection.open(link, { signal, timeoutMs, answerTimeoutMs: this.#answerTimeoutMs })
      } catch (error) {
        signal?.throwIfAborted()
        failure = error
      }
    }
    throw failure
  }
}

/** Lets the event loop look at the sockets once: the first turn may be the rest of the one that we are in. */
async function hangUpsSeen(): Promise<void> {
  await nextTurn()
  await nextTurn()
}

const isWorthRetrying = (error: unknown): boolean =>
  error instanceof BandSoxError && ['link-refused', 'link-lost', 'guest-silent'].includes(error.code)
