/** What was acquired on the way, released in reverse when the way fails. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { within } from '../process/deadline.js'

/** No release may hold up the others for long. */
const RELEASE_TIMEOUT_MS = 15_000

export class Releases {
  readonly #entries: { what: string; release: () => Promise<void> }[] = []
  readonly #timeoutMs: number

  /** @param timeoutMs Of each release. */
  constructor(timeoutMs = RELEASE_TIMEOUT_MS) {
    this.#timeoutMs = timeoutMs
  }

  /** Registers a release; call it on the line after the acquisition. */
  add(what: string, release: () => Promise<void>): void {
    this.#entries.push({ what, release })
  }

  /** All went well: what was acquired now belongs to something else. */
  forget(): void {
    this.#entries.length = 0
  }

  /** Runs all, the last one first, each once. @returns The failures, in sentences; one does not stop the others. */
  async run(): Promise<string[]> {
    const failures: string[] = []
    for (let entry = this.#entries.pop(); entry !== undefined; entry = this.#entries.pop()) {
      const { what, release } = entry
      try {
        await within(
          release(),
          this.#timeoutMs,
          () => new BandSoxError('timeout', `no end after ${this.#timeoutMs} ms`),
        )
      } catch (error) {
        failures.push(`cannot release ${what}: ${messageOf(error)}`)
      }
    }
    return failures
  }
}
