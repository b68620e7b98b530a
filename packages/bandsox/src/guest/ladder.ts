/**
 * Which link an operation takes: the healthiest one, in the driver's declared order, decided for each operation by itself. What is
 * remembered of a link is what it last did, never a verdict: one that failed is looked at again while the next one carries on, and is
 * taken back with its first answer.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, type LinkKind, messageOf } from '@bandsox/sdk'
import type { Link } from '../link/link.js'
import { GuestConnection, isLinkFailure } from './connection.js'

/** A link that has another one below it is tried so often, */
const TRIES = 3
/** within this time in all, */
const PATIENCE_MS = 1_500
/** or this one once it was seen to work: then it answers at once, or not. */
const HEALTHY_PATIENCE_MS = 300
const BETWEEN_TRIES_MS = 30
/** Least time between two looks at a link that failed. */
const PROBE_INTERVAL_MS = 250

interface Rung {
  readonly link: Link
  wasHealthy: boolean
  /** What its last use failed by; undefined when it did not. */
  failure: unknown
  probedAt: number
  isProbed: boolean
}

export interface LadderOptions {
  /** Of every connection; default: by its link. */
  answerTimeoutMs?: number | undefined
  /** Gets a connection that a probe has opened. Default: it is closed. */
  onProbed?: (connection: GuestConnection) => void
  log?: (text: string) => void
}

export class Ladder {
  readonly #rungs: readonly Rung[]
  readonly #options: LadderOptions
  readonly #closed = new AbortController()
  /** Ends what looks at links in the background. */
  #probing = new AbortController()

  constructor(links: readonly Link[], options: LadderOptions = {}) {
    this.#rungs = links.map((link) => ({
      link,
      wasHealthy: false,
      failure: undefined,
      probedAt: Number.NEGATIVE_INFINITY,
      isProbed: false,
    }))
    this.#options = options
  }

  /**
   * Opens a connection over the first link that answers.
   *
   * @param options.only Leaves all other links out.
   * @param options.tryMs Bounds the try of each link in place of what is usual.
   * @throws What the last link failed by: `link-refused`, `guest-silent`, …; at once what no other link would cure
   *   (`agent-incompatible`, `guest-protocol`), and `signal.reason`.
   */
  async connect(
    options: { signal?: AbortSignal | undefined; only?: LinkKind | undefined; tryMs?: number | undefined } = {},
  ): Promise<GuestConnection> {
    const { signal, only, tryMs } = options
    const usable = only === undefined ? this.#rungs : this.#rungs.filter(({ link }) => link.kind === only)
    if (usable.length === 0) throw noLink(only)
    const order = [...usable.filter(({ failure }) => failure === undefined)]
    for (const rung of usable) if (!order.includes(rung)) order.push(rung)
    let failure: unknown
    for (const [index, rung] of order.entries()) {
      const isLast = index === order.length - 1
      try {
        const connection =
          isLast || tryMs !== undefined ? await this.#open(rung, signal, tryMs) : await this.#insist(rung, signal)
        this.#worked(rung)
        for (const better of usable.slice(0, usable.indexOf(rung))) this.#probe(better)
        return connection
      } catch (error) {
        signal?.throwIfAborted()
        if (!isLinkFailure(error)) throw error
        this.#failed(rung, error, order[index + 1])
        rung.probedAt = performance.now() // it was looked at just now
        failure = error
      }
    }
    throw failure
  }

  /** A connection over `kind` broke in the middle: others go first for now. */
  broke(kind: LinkKind, error: unknown): void {
    const rung = this.#rungs.find(({ link }) => link.kind === kind)
    if (rung !== undefined && this.#rungs.length > 1) this.#failed(rung, error, undefined)
  }

  /** Whether a link before `kind` works, so that something long may change to it. One that failed is looked at again by this. */
  hasBetterThan(kind: LinkKind): boolean {
    for (const rung of this.#rungs) {
      if (rung.link.kind === kind) return false
      if (rung.failure === undefined && rung.wasHealthy) return true
      this.#probe(rung)
    }
    return false
  }

  /** After a pause nothing is known of any link. */
  forget(): void {
    this.#probing.abort(new BandSoxError('link-lost', 'the links are looked at anew'))
    this.#probing = new AbortController()
    for (const rung of this.#rungs) Object.assign(rung, { wasHealthy: false, failure: undefined })
  }

  close(): void {
    this.#closed.abort(new BandSoxError('link-lost', 'the links were given up'))
  }

  async #insist(rung: Rung, signal: AbortSignal | undefined): Promise<GuestConnection> {
    const deadline = performance.now() + (rung.wasHealthy ? HEALTHY_PATIENCE_MS : PATIENCE_MS)
    for (let triesLeft = TRIES; ; triesLeft--) {
      const leftMs = Math.max(1, deadline - performance.now())
      try {
        return await this.#open(rung, signal, Math.ceil(leftMs / triesLeft))
      } catch (error) {
        if (triesLeft === 1 || !isLinkFailure(error) || performance.now() + BETWEEN_TRIES_MS >= deadline) throw error
      }
      await delay(BETWEEN_TRIES_MS, undefined, signal && { signal }).catch(() => signal?.throwIfAborted())
    }
  }

  #open({ link }: Rung, signal: AbortSignal | undefined, timeoutMs?: number): Promise<GuestConnection> {
    return GuestConnection.open(link, { signal, timeoutMs, answerTimeoutMs: this.#options.answerTimeoutMs })
  }

  #worked(rung: Rung): void {
    if (rung.failure !== undefined) this.#options.log?.(`${rung.link.kind} works again`)
    rung.failure = undefined
    rung.wasHealthy = true
  }

  #failed(rung: Rung, error: unknown, next: Rung | undefined): void {
    if (rung.failure === undefined && next !== undefined)
      this.#options.log?.(`${rung.link.kind} failed (${messageOf(error)}): going on over ${next.link.kind}`)
    rung.failure = error
  }

  /** In the background, one at a time. Its failures say no more than is known already. */
  #probe(rung: Rung): void {
    const now = performance.now()
    if (rung.failure === undefined || rung.isProbed || now - rung.probedAt < PROBE_INTERVAL_MS) return
    if (this.#closed.signal.aborted) return
    Object.assign(rung, { isProbed: true, probedAt: now })
    const { signal } = this.#probing
    this.#open(rung, AbortSignal.any([this.#closed.signal, signal]), PATIENCE_MS)
      .then(
        (connection) => {
          if (signal.aborted) return connection.close() // what was true before a pause need not be after it
          this.#worked(rung)
          if (this.#options.onProbed !== undefined) this.#options.onProbed(connection)
          else connection.close()
        },
        (error: unknown) => {
          if (!signal.aborted) rung.failure = error
        },
      )
      .finally(() => {
        Object.assign(rung, { isProbed: false, probedAt: performance.now() })
      })
  }
}

/** The guide for machines that were made without vsock. */
export const VSOCK_GUIDE = 'docs/migration.md'

function noLink(only: LinkKind | undefined): BandSoxError {
  if (only === undefined) return new BandSoxError('agent-unreachable', 'the VM has no link to its agent')
  if (only === 'serial') return new BandSoxError('link-refused', 'the VM has no serial link to its agent')
  return vsockRequired('this')
}

/** For a machine without vsock that is asked for it. */
export const vsockRequired = (what: string): BandSoxError =>
  new BandSoxError(
    'vsock-unavailable',
    `${what} requires vsock support, which the VM does not have: see ${VSOCK_GUIDE}`,
    {
      hint: `start it with --vsock on, or leave the choice of the link to bandsox; ${VSOCK_GUIDE} says how`,
    },
  )
