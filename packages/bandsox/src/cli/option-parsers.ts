/** Values of command line options, checked where they are typed. */
import { InvalidArgumentError, Option } from 'commander'

export function integerOption(text: string): number {
  if (/^\d{1,15}$/.test(text)) return Number(text)
  throw new InvalidArgumentError('it must be a whole number.')
}

/** `90`, `500ms`, `1.5s` or `2m`, as milliseconds; a bare number is seconds. */
export function durationOption(text: string): number {
  const match = /^(\d+(?:\.\d+)?)(ms|s|m|h)?$/.exec(text)
  const factor = { ms: 1, s: 1_000, m: 60_000, h: 3_600_000 }[match?.[2] ?? 's']
  const milliseconds = match === null || factor === undefined ? 0 : Math.round(Number(match[1]) * factor)
  if (milliseconds >= 1 && milliseconds < 2 ** 31) return milliseconds
  throw new InvalidArgumentError('it must be a time such as 90, 500ms, 1.5s or 2m.')
}

/** `NAME=value`, or `NAME` for the value that it has here; repeated options add up. */
export function environmentOption(text: string, before: Record<string, string> = {}): Record<string, string> {
  const [name = '', ...rest] = text.split('=')
  if (name === '') throw new InvalidArgumentError('it must be NAME=value.')
  const value = text.includes('=') ? rest.join('=') : process.env[name]
  if (value === undefined) throw new InvalidArgumentError(`${name} has no value here; write ${name}=value.`)
  return { ...before, [name]: value }
}

/** `["sh","-c","true"]`. */
export function wordsOption(text: string): string[] {
  let value: unknown
  try {
    value = JSON.parse(text)
  } catch {
    value = undefined // as for any other text
  }
  if (Array.isArray(value) && value.every((word) => typeof word === 'string')) return value
  throw new InvalidArgumentError(`it must be a JSON array of strings, such as '["sh","-c","date"]'.`)
}

export function modeOption(text: string): number {
  if (/^[0-7]{3,4}$/.test(text)) return Number.parseInt(text, 8)
  throw new InvalidArgumentError('it must be an octal mode such as 644 or 0755.')
}

/** Of every command that talks to a guest. */
export const linkOption = (): Option =>
  new Option('--link <link>', 'this link and no other (default: the healthiest)').choices(['vsock', 'serial'])
