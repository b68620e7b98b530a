/** What every command gets: the options that all share, a printer, an abort signal, and this host's sandboxes. */
import { type BandSox, BandSoxError, printable } from '@bandsox/sdk'
import type { Command } from 'commander'
import { type Config, imageSettings, readConfig } from '../config.js'

export const logLevels = ['debug', 'info', 'warn', 'error'] as const
export type LogLevel = (typeof logLevels)[number]

interface GlobalOptions {
  storage?: string
  json?: boolean
  logLevel?: LogLevel
}

export interface Context {
  readonly config: Config
  readonly isJson: boolean
  /** Aborted by Ctrl-C and SIGTERM. */
  readonly signal: AbortSignal
  readonly debug: (message: string) => void
  open(): Promise<BandSox>
  /** Prints what a person reads, or with `--json` what a program reads; one of the two. */
  print(text: string, json: unknown): void
}

export function contextOf(command: Command): Context {
  const { storage, json, logLevel } = command.optsWithGlobals<GlobalOptions>()
  const config = readConfig(process.env, storage === undefined ? {} : { storage })
  const isJson = json === true
  const debug = logLevel === 'debug' ? logDebug : () => undefined
  return {
    config,
    isJson,
    signal: interruptSignal(),
    debug,
    open: async () => {
      // Here, not at the top: it takes 200 ms to load, which help and completion, asked for at each Tab, need not wait for.
      const { LocalBandSox } = await import('../sandbox/local-bandsox.js')
      return await LocalBandSox.open({
        ...config,
        images: imageSettings(config),
        debug,
        warn: logLevel === 'error' ? () => undefined : warnUser,
      })
    },
    print(text, value) {
      const line = isJson ? JSON.stringify(value) : text
      process.stdout.write(line.endsWith('\n') || line === '' ? line : `${line}\n`)
    },
  }
}

function warnUser(message: string): void {
  process.stderr.write(`bandsox: warning: ${printable(message)}\n`)
}

function logDebug(message: string): void {
  process.stderr.write(`${new Date().toISOString()} DEBUG ${printable(message)}\n`)
}

let interrupt: AbortController | undefined

/** The first signal asks for an orderly end; the second is obeyed at once, by the default that is then back in place. */
function interruptSignal(): AbortSignal {
  if (interrupt !== undefined) return interrupt.signal
  const controller = new AbortController()
  interrupt = controller
  for (const name of ['SIGINT', 'SIGTERM'] as const) {
    process.once(name, () => controller.abort(new BandSoxError('cancelled', `interrupted by ${name}`)))
  }
  return controller.signal
}
