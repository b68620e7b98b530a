/** Reads kernel configurations, and compares what was wanted with what Kconfig made of it. No I/O. */
import { StepError } from '../scripts/lib/step.mjs'

/** @typedef {Map<string, string>} Configuration Values by option, without its CONFIG_: `y`, `n`, a number, a "text". */

const SET = /^CONFIG_(\w+)=(.+)$/
const NOT_SET = /^# CONFIG_(\w+) is not set$/

/**
 * Parses a fragment, or a whole `.config`.
 *
 * @param {string} text
 * @param {string} name For messages.
 * @returns {Configuration}
 * @throws {StepError} For a line that says nothing, and for an option that is there twice.
 */
export function parseConfiguration(text, name) {
  /** @type {Configuration} */
  const options = new Map()
  for (const [index, line] of text.split('\n').entries()) {
    const [, option = NOT_SET.exec(line)?.[1], value = 'n'] = SET.exec(line) ?? []
    if (option === undefined) {
      if (line === '' || line.startsWith('#')) continue
      throw new StepError(`${name}, line ${index + 1}: neither an option nor a comment: ${line}`)
    }
    if (options.has(option)) throw new StepError(`${name}, line ${index + 1}: CONFIG_${option} for the second time`)
    options.set(option, value)
  }
  return options
}

/**
 * Names of the options that a Kconfig file defines.
 *
 * @param {string} text
 */
export const definedOptions = (text) =>
  [...text.matchAll(/^[ \t]*(?:menu)?config[ \t]+(\w+)[ \t]*$/gm)].map(([, name]) => name ?? '')

/**
 * Finds what Kconfig, which drops silently what it cannot have, did not take over.
 *
 * @param {object} given
 * @param {Configuration} given.wanted All of it must be there.
 * @param {Configuration} given.ifKnown What of it the kernel knows must be there.
 * @param {Configuration} given.result
 * @param {ReadonlySet<string>} given.known Options that the kernel defines.
 * @returns {{ unmet: string[], passedOver: string[] }} Sentences; options of `ifKnown` that the kernel does not know.
 */
export function compareConfiguration({ wanted, ifKnown, result, known }) {
  /** @type {string[]} */
  const unmet = []
  for (const [option, value] of [...wanted, ...ifKnown]) {
    const found = result.get(option) ?? 'n'
    if (found === value) continue
    if (known.has(option)) unmet.push(`CONFIG_${option} is ${found} instead of ${value}`)
    else if (wanted.has(option)) unmet.push(`CONFIG_${option}=${value}: this kernel has no such option`)
  }
  return { unmet, passedOver: [...ifKnown.keys()].filter((option) => !known.has(option)) }
}
