#!/usr/bin/env node
/** The command `bandsox`: parses, runs, and turns every error into a sentence, a hint and an exit status. */
import { BandSoxError, errorTable, messageOf, printable } from '@bandsox/sdk'
import { CommanderError } from 'commander'
import { SIGPIPE_STATUS } from './man/exit-statuses.js'
import { buildProgram } from './program.js'

/** sysexits.h */
const EX_USAGE = 64

/** @returns The exit status. */
function reportError(error: unknown, asJson: boolean): number {
  if (error instanceof CommanderError) {
    if (error.exitCode === 0) return 0
    if (asJson) process.stderr.write(`${JSON.stringify(usageError(error))}\n`) // else commander has printed it
    return EX_USAGE
  }
  const code = error instanceof BandSoxError ? error.code : 'internal'
  const hint = error instanceof BandSoxError ? error.hint : errorTable.internal.hint
  if (asJson) process.stderr.write(`${JSON.stringify({ detail: messageOf(error), code, hint })}\n`)
  else process.stderr.write(printable(`bandsox: ${messageOf(error)}\n${hint === undefined ? '' : `hint: ${hint}\n`}`))
  if (code === 'internal' && error instanceof Error && !asJson)
    process.stderr.write(`${printable(error.stack ?? '')}\n`)
  return errorTable[code].exit
}

function usageError({ code, message }: CommanderError): { detail: string; code: string; hint: string } {
  const detail = code === 'commander.help' ? 'no command given' : message.replace(/^error: /, '')
  return { detail, code: 'bad-request', hint: 'see: bandsox --help' }
}

/** Until a command is understood; its own words, behind `exec`, are not ours. */
let asJson = process.argv.includes('--json')

process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  // `bandsox logs | head`, or a terminal that was closed: nobody reads any more.
  if (error.code === 'EPIPE' || (error.code === 'EIO' && process.stdout.isTTY)) process.exit(SIGPIPE_STATUS)
  throw error
})

try {
  await buildProgram(asJson)
    .hook('preAction', (_, command) => {
      asJson = command.optsWithGlobals<{ json?: boolean }>().json === true
    })
    .parseAsync()
} catch (error) {
  process.exitCode = reportError(error, asJson)
}
