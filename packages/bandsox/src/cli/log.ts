/** Log lines on stderr: UTC in ISO 8601, level, message; with `--json` an object a line. */
import { BandSoxError, printable, printableLine } from '@bandsox/sdk'

export const logLevels = ['debug', 'info', 'warn', 'error'] as const
export type LogLevel = (typeof logLevels)[number]

export interface Log {
  debug(message: string): void
  info(message: string): void
  warn(message: string): void
}

/** Nobody asked for more: then warnings are written to a person, without the trimmings of a log. */
const DEFAULT_LOG_LEVEL: LogLevel = 'warn'

/** @param text Of the environment. @throws `bad-request`. */
export function logLevelFrom(text: string | undefined): LogLevel {
  if (text === undefined || text === '') return DEFAULT_LOG_LEVEL
  const level = logLevels.find((each) => each === text)
  if (level !== undefined) return level
  throw new BandSoxError('bad-request', `BANDSOX_LOG_LEVEL: ${JSON.stringify(text)} is none of ${logLevels.join(', ')}`)
}

export function createLog(level: LogLevel, isJson: boolean): Log {
  const isWanted = (of: LogLevel) => logLevels.indexOf(of) >= logLevels.indexOf(level)
  const write = (of: LogLevel) => (message: string) => {
    if (!isWanted(of)) return
    process.stderr.write(lineOf(of, message, level, isJson))
  }
  return { debug: write('debug'), info: write('info'), warn: write('warn') }
}

function lineOf(of: LogLevel, message: string, level: LogLevel, isJson: boolean): string {
  const time = new Date().toISOString()
  if (isJson) return `${JSON.stringify({ time, level: of, message })}\n`
  if (level === DEFAULT_LOG_LEVEL) return `bandsox: warning: ${printable(message)}\n`
  return `${time} ${of.toUpperCase()} ${printableLine(message)}\n`
}
