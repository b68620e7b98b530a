/** Labels, metadata and limits on the command line, where they are typed; what is allowed in them the library says. */
import { type JsonValue, type Limits, type Metadata, type StateName, stateNames } from '@bandsox/sdk'
import { type Command, InvalidArgumentError } from 'commander'

/** `key=value`; repeated options add up. */
export function labelOption(text: string, before: Record<string, string> = {}): Record<string, string> {
  const [key = '', ...value] = text.split('=')
  if (key === '' || !text.includes('=')) throw new InvalidArgumentError('it must be key=value.')
  return { ...before, [key]: value.join('=') }
}

/** `key=value`, or `key` for any value. */
export function labelFilterOption(
  text: string,
  before: Record<string, string | null> = {},
): Record<string, string | null> {
  const [key = '', ...value] = text.split('=')
  if (key === '') throw new InvalidArgumentError('it must be key or key=value.')
  return { ...before, [key]: text.includes('=') ? value.join('=') : null }
}

/** `key=value` sets, `key-` removes. */
export function labelChanges(words: readonly string[]): Record<string, string | null> {
  let changes: Record<string, string | null> = {}
  for (const word of words) {
    // Spread, and not assigned: a key may be called __proto__, which is then refused by its name.
    if (word.includes('=')) changes = { ...changes, ...labelOption(word) }
    else if (word.endsWith('-') && word.length > 1) changes = { ...changes, [word.slice(0, -1)]: null }
    else throw new InvalidArgumentError(`${JSON.stringify(word)}: a label is set by key=value and removed by key-.`)
  }
  return changes
}

/** An object as JSON. */
export function metadataOption(text: string): Metadata {
  const value = jsonOrUndefined(text)
  if (isMetadata(value)) return value
  throw new InvalidArgumentError('it must be a JSON object, such as \'{"team":"blue"}\'.')
}

/** What `JSON.parse` makes holds nothing that is not JSON. */
const isMetadata = (value: unknown): value is Metadata =>
  typeof value === 'object' && value !== null && !Array.isArray(value)

function jsonOrUndefined(text: string): JsonValue | undefined {
  try {
    return JSON.parse(text) as JsonValue
  } catch {
    return undefined // not JSON: what that means, the caller knows
  }
}

/** `key=value`; the value is JSON where it can be, else text. */
export function metadataFilterOption(text: string, before: Metadata = {}): Metadata {
  const [key = '', ...rest] = text.split('=')
  if (key === '' || !text.includes('=')) throw new InvalidArgumentError('it must be key=value.')
  const value = rest.join('=')
  return { ...before, [key]: jsonOrUndefined(value) ?? value }
}

/** One or several, by commas. */
export function statesOption(text: string, before: StateName[] = []): StateName[] {
  const names = text.split(',').map((word) => {
    const state = stateNames.find((name) => name === word)
    if (state === undefined)
      throw new InvalidArgumentError(`there is no state ${word}; there are: ${stateNames.join(', ')}.`)
    return state
  })
  return [...before, ...names]
}

/** `none` stays a word until here: commander takes null for "no value was given". */
export type LimitOption = number | 'none'

export interface LimitOptions {
  cpus?: LimitOption
  diskRate?: LimitOption
  diskIops?: LimitOption
}

/** A number, or `none`. */
export function rateOption(text: string): LimitOption {
  if (text === 'none') return text
  if (/^\d{1,12}$/.test(text)) return Number(text)
  throw new InvalidArgumentError('it must be a whole number, or none.')
}

/** A number with or without decimals, or `none`. */
export function shareOption(text: string): LimitOption {
  if (text === 'none') return text
  if (/^\d{1,4}(?:\.\d{1,4})?$/.test(text)) return Number(text)
  throw new InvalidArgumentError('it must be a number such as 0.5, or none.')
}

export function withLimitOptions(command: Command): Command {
  return command
    .option(
      '--cpus <number>',
      "host CPUs' worth of time, such as 0.5, or none; needs cgroup v2 (default: none)",
      shareOption,
    )
    .option('--disk-rate <MiB/s>', 'disk bandwidth, reads and writes together, or none (default: 200)', rateOption)
    .option('--disk-iops <count>', 'disk operations per second, or none (default: 5000)', rateOption)
}

const MIB = 1024 * 1024

export const limitsFrom = ({ cpus, diskRate, diskIops }: LimitOptions): Partial<Limits> => ({
  ...(cpus !== undefined && { cpus: limitFrom(cpus, 1) }),
  ...(diskRate !== undefined && { diskBytesPerSecond: limitFrom(diskRate, MIB) }),
  ...(diskIops !== undefined && { diskOperationsPerSecond: limitFrom(diskIops, 1) }),
})

const limitFrom = (option: LimitOption, unit: number): number | null => (option === 'none' ? null : option * unit)
