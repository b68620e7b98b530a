/** Runs the steps of a script in order and prints one line for each. */

/** A step cannot be done, and what to do about it. */
export class StepError extends Error {
  /**
   * @param {string} message What could not be done, and why.
   * @param {{ remedy?: string | undefined, cause?: unknown }} [options] `remedy`: what to do about it, one line.
   */
  constructor(message, { remedy, cause } = {}) {
    super(message, cause === undefined ? undefined : { cause })
    this.name = 'StepError'
    this.remedy = remedy
  }
}

/**
 * @typedef {object} Outcome
 * @property {string} detail What there is now.
 * @property {boolean} [changed] Whether something was done.
 * @property {string} [lacking] A sentence on what is not there; the script goes on without it.
 * @property {string} [remedy] What to do about what is lacking.
 *
 * @typedef {object} Step
 * @property {string} name
 * @property {string[]} [needs] Names of steps that must have succeeded.
 * @property {(activity: (text: string) => void) => Promise<Outcome>} run
 */

const NAME_COLUMNS = 12

/**
 * Runs every step whose needs are met, so that one run tells everything that is missing.
 *
 * @param {Step[]} steps
 * @param {(line: string) => void} print
 * @returns {Promise<string[]>} Names of the steps that failed or could not begin.
 */
export async function runSteps(steps, print) {
  /** @type {string[]} */
  const failed = []
  for (const { name, needs = [], run } of steps) {
    if (needs.some((need) => failed.includes(need))) {
      failed.push(name)
      continue
    }
    const started = performance.now()
    const line = (/** @type {string} */ mark, /** @type {string} */ text) =>
      print(`${mark} ${name.padEnd(NAME_COLUMNS)} ${text}  ${formatTime(performance.now() - started)}`)
    try {
      const { detail, changed = false, lacking, remedy } = await run(showActivity(name))
      if (lacking === undefined) line(changed ? '+' : '✓', detail)
      else line('!', lacking)
      if (remedy !== undefined) print(`  remedy: ${remedy}`)
    } catch (error) {
      failed.push(name)
      line('✗', error instanceof Error ? error.message : String(error))
      const remedy = remedyOf(error)
      if (remedy !== undefined) print(`  remedy: ${remedy}`)
    }
  }
  return failed
}

/**
 * A step's own remedy, or the hint of an error of the product.
 *
 * @param {unknown} error
 * @returns {string | undefined}
 */
const remedyOf = (error) => {
  if (error instanceof StepError) return error.remedy
  if (error instanceof Error && 'hint' in error && typeof error.hint === 'string') return error.hint
  return undefined
}

/** @param {number} ms */
const formatTime = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`)

/**
 * On a terminal, shows what takes long until the step's own line replaces it.
 *
 * @param {string} name
 */
const showActivity = (name) => (/** @type {string} */ text) => {
  if (process.stdout.isTTY) process.stdout.write(`… ${name.padEnd(NAME_COLUMNS)} ${text}\x1b[K\r`)
}
