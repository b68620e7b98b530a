/** The agent of one VM: connections to it over its healthiest link, kept for reuse while idle, replaced when they break. */
import { setMaxListeners } from 'node:events'
import { setTimeout as delay, setImmediate as nextTurn } from 'node:timers/promises'
import { BandSoxError, type LinkKind, messageOf } from '@bandsox/sdk'
import type { Link } from '../link/link.js'
import { type GuestConnection, type Hello, isLinkFailure } from './connection.js'
import { Ladder } from './ladder.js'

/** Enough for a few operations side by side; more would hold descriptors for nothing. */
const MAX_IDLE = 4
/** Between two tries while the guest boots: its listener appears at an unknown moment, and a try costs the guest little. */
const RETRY_MS = 20
/** A try during boot may hang unanswered in a device that the guest has not set up yet. */
const BOOT_TRY_MS = 1_000
/** An operation that gets no further is given up after so many connections, with pauses that double between them. */
const MAX_STALLS = 6
const STALL_PAUSE_MS = 25
/** One that left us waiting for its whole time counts as several: a guest that takes nothing is not to be waited for minutes. */
const STALLS_OF_SILENCE = 3
/** Both links may be away for a while: a held gate, a line that is greeted anew. The guest keeps what it has for longer. */
const RECONNECT_PATIENCE_MS = 15_000
const MAX_PAUSE_MS = 1_000

/**
 * What became of the machine, as its owner sees it: something was mended, it is as it was, it runs no more; or its links are held back for
 * a moment, which may be over or still to come, and has an end.
 */
export type Recovery = 'mended' | 'unchanged' | 'held' | 'gone'

export interface AgentOptions {
  /** How long the guest may leave us without the answer that it owes us. Default: by the link. */
  answerTimeoutMs?: number
  /** Hears when a link fails, and when it works again. */
  log?: (text: string) => void
}

export interface UseOptions {
  signal?: AbortSignal | undefined
  /** Leaves all other links out. */
  only?: LinkKind | undefined
  /** False for who holds the operation on the machine that others wait for: it would wait for itself. Default: true. */
  recovers?: boolean | undefined
}

/** The agent of a sandbox as it is by then: it may have to be woken up, which `signal` ends. */
export type FindAgent = (signal?: AbortSignal) => Promise<Agent>

/** An operation that goes on over another connection when its own breaks. */
export interface Resumable<T> {
  /** Called with each connection, until it returns or fails by something else than the link. */
  run(connection: GuestConnection): Promise<T>
  /** Whether the guest will know it on another connection. */
  canGoOn(connection: GuestConnection): boolean
  /** Grows while it gets further. */
  progress(): number
}

export class Agent {
  readonly #ladder: Ladder
  readonly #idle: GuestConnection[] = []
  readonly #inUse = new Set<GuestConnection>()
  #recover: (signal: AbortSignal | undefined) => Promise<Recovery> = async () => 'unchanged'
  readonly #log: (text: string) => void
  readonly #closing = new AbortController()
  /** Closed by ourselves: their end says nothing about a link. */
  readonly #quiesced = new WeakSet<GuestConnection>()

  /** @param links In the driver's declared order. */
  constructor(links: readonly Link[], options: AgentOptions = {}) {
    this.#log = options.log ?? (() => undefined)
    setMaxListeners(0, this.#closing.signal) // as many as there are operations
    this.#ladder = new Ladder(links, {
      answerTimeoutMs: options.answerTimeoutMs,
      log: this.#log,
      onProbed: (connection) => {
        this.#inUse.add(connection)
        this.release(connection)
      },
    })
  }

  /** @param recover Asked when every link refused, or a connection broke in the middle; may wait for a paused machine. */
  onLost(recover: (signal: AbortSignal | undefined) => Promise<Recovery>): void {
    this.#recover = recover
  }

  /**
   * Runs one operation on a connection of its own. It is kept for the next one when the operation succeeded; after any failure
   * it is closed, which ends whatever the agent still does for it.
   */
  async use<T>(operation: (connection: GuestConnection) => Promise<T>, options: UseOptions = {}): Promise<T> {
    const connection = await this.acquire(options)
    try {
      const result = await operation(connection)
      this.release(connection)
      return result
    } catch (error) {
      this.discard(connection, error)
      throw error
    }
  }

  /**
   * Runs an operation over as many connections as it takes.
   *
   * @throws What it fails by; the link's failure when it gets no further, or the machine has ended, or the guest was started anew.
   */
  async useUntilDone<T>(operation: Resumable<T>, options: UseOptions = {}): Promise<T> {
    let connection = await this.acquire(options)
    const { bootId } = connection.hello
    let stalls = 0
    for (;;) {
      const before = operation.progress()
      try {
        const result = await operation.run(connection)
        this.release(connection)
        return result
      } catch (error) {
        this.lost(connection, error)
        options.signal?.throwIfAborted()
        if (!isLinkFailure(error) || !operation.canGoOn(connection) || this.#closing.signal.aborted) throw error
        stalls = operation.progress() > before ? 0 : stalls + (isSilence(error) ? STALLS_OF_SILENCE : 1)
        connection = await this.reconnect(error, { ...options, bootId, stalls })
      }
    }
  }

  /**
   * Another connection in the place of one that broke.
   *
   * @param broken Why it broke: thrown when there is none to be had.
   * @param options.stalls How often it broke without getting further.
   */
  async reconnect(
    broken: unknown,
    options: UseOptions & { bootId: string; stalls?: number },
  ): Promise<GuestConnection> {
    const { signal: asked, bootId, only, recovers, stalls = 0 } = options
    const signal = asked === undefined ? this.#closing.signal : AbortSignal.any([asked, this.#closing.signal])
    const reason = isChangeOfLink(broken)
      ? new BandSoxError('link-lost', 'no link to the guest answers any more')
      : broken
    if (stalls > MAX_STALLS) throw reason
    if (stalls > 0) await pause(STALL_PAUSE_MS * 2 ** stalls, signal)
    let startedAt = performance.now()
    for (let pauseMs = STALL_PAUSE_MS; ; pauseMs = Math.min(2 * pauseMs, MAX_PAUSE_MS)) {
      const recovery = await this.#recovered({ signal, recovers })
      signal.throwIfAborted()
      if (recovery === 'gone') throw reason
      if (recovery === 'held') startedAt = performance.now()
      const connection = await this.#acquireAgain({ signal, only, recovers })
      if (connection?.hello.bootId === bootId) return connection
      if (connection !== undefined) {
        this.release(connection)
        throw new BandSoxError('link-lost', `the guest was started anew: ${messageOf(reason)}`, { cause: reason })
      }
      if (performance.now() - startedAt > RECONNECT_PATIENCE_MS) throw reason
      await pause(pauseMs, signal)
    }
  }

  async #acquireAgain(options: UseOptions): Promise<GuestConnection | undefined> {
    try {
      return await this.acquire(options)
    } catch (error) {
      options.signal?.throwIfAborted()
      if (!isLinkFailure(error)) throw error
      this.#log(`no connection in the place of the broken one: ${messageOf(error)}`)
      return undefined
    }
  }

  /** A greeted connection; hand it back by `release` (in step) or `discard`. */
  async acquire({ signal, only, recovers }: UseOptions = {}): Promise<GuestConnection> {
    signal?.throwIfAborted()
    if (this.#idle.length > 0) await hangUpsSeen()
    const idle = this.#takeIdle(only)
    if (idle !== undefined) return idle
    const connection = await this.#connectOrRecover({ signal, only, recovers })
    if (this.#closing.signal.aborted) {
      connection.close()
      throw new BandSoxError('link-lost', 'the connection to the guest was closed while it was being made')
    }
    this.#inUse.add(connection)
    return connection
  }

  release(connection: GuestConnection): void {
    this.#inUse.delete(connection)
    if (this.#closing.signal.aborted || !connection.isOpen || this.#idle.length >= MAX_IDLE) {
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

  /** Discards a connection that broke, or failed otherwise; the link is remembered for it. */
  lost(connection: GuestConnection, error: unknown): void {
    this.discard(connection, error)
    if (isLinkFailure(error) && !isChangeOfLink(error) && !this.#quiesced.has(connection))
      this.#ladder.broke(connection.link, error)
  }

  /**
   * Whether something long had better go on over another link: throws what makes `useUntilDone` change it.
   *
   * @param capability What the guest must have, so that it can go on.
   */
  changeToBetterLink(connection: GuestConnection, only: LinkKind | undefined, capability: string): void {
    if (only !== undefined || !connection.hello.capabilities.includes(capability)) return
    if (this.#ladder.hasBetterThan(connection.link))
      throw new ChangeOfLink('link-lost', `a better link than ${connection.link} works again`)
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
        const tryMs = Math.ceil(Math.min(BOOT_TRY_MS, left))
        const connection = await this.#ladder.connect({ signal: options.signal, tryMs })
        this.release(connection)
        return connection.hello
      } catch (error) {
        options.signal?.throwIfAborted()
        if (!isLinkFailure(error)) throw error
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

  /**
   * Closes every connection before the machine is paused: streams do not outlive that on every VMM, and nobody is told. Operations that can
   * go on do so when it runs again.
   */
  quiesce(reason: unknown): void {
    for (const connection of [...this.#idle.splice(0), ...this.#inUse]) {
      this.#quiesced.add(connection)
      connection.close(reason)
    }
    this.#inUse.clear()
    this.#ladder.forget()
  }

  /** Closes every connection, and takes no new ones. */
  close(reason?: unknown): void {
    this.#closing.abort(reason ?? new BandSoxError('link-lost', 'the connection to the guest was closed'))
    this.#ladder.close()
    this.quiesce(reason)
  }

  #takeIdle(only: LinkKind | undefined): GuestConnection | undefined {
    for (let index = this.#idle.length - 1; index >= 0; index--) {
      const idle = this.#idle[index]
      if (idle === undefined || (only !== undefined && idle.link !== only)) continue
      this.#idle.splice(index, 1)
      if (!idle.isOpen) continue
      if (only === undefined && this.#ladder.hasBetterThan(idle.link)) {
        idle.close()
        continue
      }
      idle.wake()
      this.#inUse.add(idle)
      return idle
    }
    return undefined
  }

  async #recovered({ signal, recovers = true }: UseOptions): Promise<Recovery> {
    return recovers ? await this.#recover(signal) : 'unchanged'
  }

  async #connectOrRecover(options: UseOptions): Promise<GuestConnection> {
    for (let isRetried = false; ; ) {
      try {
        return await this.#ladder.connect(options)
      } catch (error) {
        options.signal?.throwIfAborted()
        const recovery = isLinkFailure(error) ? await this.#recovered(options) : 'gone'
        if (recovery === 'held') continue
        // A link that was opened and then broke off before the guest's hello is there: on a busy host it may do better.
        if (isRetried || !(recovery === 'mended' || (recovery === 'unchanged' && isBreak(error)))) throw error
        isRetried = true
      }
    }
  }
}

/** @throws `signal.reason`. */
async function pause(ms: number, signal: AbortSignal): Promise<void> {
  await delay(ms, undefined, { signal }).catch(() => signal.throwIfAborted())
}

/** Not a failure: the connection is left for a better one. */
class ChangeOfLink extends BandSoxError {}

const isSilence = (error: unknown): boolean => error instanceof BandSoxError && error.code === 'guest-silent'

const isBreak = (error: unknown): boolean => error instanceof BandSoxError && error.code === 'link-lost'

const isChangeOfLink = (error: unknown): boolean => error instanceof ChangeOfLink

/** Lets the event loop look at the sockets once: the first turn may be the rest of the one that we are in. */
async function hangUpsSeen(): Promise<void> {
  await nextTurn()
  await nextTurn()
}
