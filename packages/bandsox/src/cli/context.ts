/** What every command gets: the options that all share, a printer, a log, an abort signal, and this host's sandboxes. */
import { BandSoxError } from '@bandsox/sdk'
import type { Command } from 'commander'
import { type Config, imageSettings, readConfig } from '../config.js'
import type { LocalBandSox, LocalConfig } from '../sandbox/local-bandsox.js'
import { createLog, type Log, type LogLevel, logLevelFrom } from './log.js'

interface GlobalOptions {
  storage?: string
  json?: boolean
  logLevel?: LogLevel
  vmm?: NonNullable<Config['vmm']>
  jailer?: NonNullable<Config['jailer']>
}

export interface Context extends Log {
  readonly config: Config
  readonly isJson: boolean
  /** Aborted by Ctrl-C and SIGTERM. */
  readonly signal: AbortSignal
  open(): Promise<LocalBandSox>
  /** What `open` opens with. */
  openConfig(): LocalConfig
  /** Prints what a person reads, or with `--json` what a program reads; one of the two. */
  print(text: string, json: unknown): void
}

export function contextOf(command: Command): Context {
  const { json, logLevel, ...given } = command.optsWithGlobals<GlobalOptions>()
  const config = readConfig(process.env, overridesOf(given))
  const isJson = json === true
  const log = createLog(logLevel ?? logLevelFrom(config.logLevel), isJson)
  const openConfig = () => ({ ...config, images: imageSettings(config), ...log })
  return {
    config,
    isJson,
    signal: interruptSignal(),
    ...log,
    open: async () => {
      // Here, not at the top: it takes 200 ms to load, which help and completion, asked for at each Tab, need not wait for.
      const { LocalBandSox } = await import('../sandbox/local-bandsox.js')
      return await LocalBandSox.open(openConfig())
    },
    openConfig,
    print(text, value) {
      const line = isJson ? JSON.stringify(value) : text
      process.stdout.write(line.endsWith('\n') || line === '' ? line : `${line}\n`)
    },
  }
}

/** Options of a command may have these names too: only ours are passed on. */
const overridesOf = ({ storage, vmm, jailer }: GlobalOptions): NonNullable<Parameters<typeof readConfig>[1]> => ({
  ...(storage !== undefined && { storage }),
  ...(vmm !== undefined && { vmm }),
  ...(jailer !== undefined && { jailer }),
})

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
