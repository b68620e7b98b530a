/** Finds the keys by which a person leaves a terminal whose guest does not answer: Enter, `~`, `.`, as in ssh(1). No I/O. */

const ENTER = 0x0d
const NEW_LINE = 0x0a
const TILDE = 0x7e
const DOT = 0x2e

/** For the help of the commands that have a terminal. */
export const LEAVE_KEYS_HELP =
  'In a terminal, Ctrl-C and Ctrl-Z go to the guest. When it does not answer: Enter ~ . kills the command and leaves.\n' +
  'Behind Enter, ~~ types one ~.'

export class LeaveKeys {
  /** What a `~` would mean now: nothing in the midst of a line, and at a second one's place the first has not been passed yet. */
  #at: 'line-start' | 'line' | 'tilde' = 'line-start'

  /** @returns What the guest gets of it; what is typed behind the keys is dropped. */
  take(typed: Uint8Array): { passed: Uint8Array; leaves: boolean } {
    const passed: number[] = []
    for (const key of typed) {
      if (this.#at === 'line-start' && key === TILDE) {
        this.#at = 'tilde'
        continue
      }
      if (this.#at === 'tilde') {
        if (key === DOT) return { passed: Uint8Array.from(passed), leaves: true }
        if (key !== TILDE) passed.push(TILDE)
      }
      passed.push(key)
      this.#at = key === ENTER || key === NEW_LINE ? 'line-start' : 'line'
    }
    return { passed: Uint8Array.from(passed), leaves: false }
  }
}
