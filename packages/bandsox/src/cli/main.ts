#!/usr/bin/env node
/** The command `bandsox`: parses, runs, and turns every error into a sentence, a hint and an exit status. */
import { readFileSync } from 'node:fs'
import { BandSoxError, errorTable, messageOf, printable } from '@bandsox/sdk'
import { Command, CommanderError, Option } from 'commander'
import { z } from 'zod'
import { addCreate } from './commands/create.js'
import { addDoctor } from './commands/doctor.js'
import { addExec, addRun } from './commands/exec.js'
import { addImage } from './commands/image.js'
import { addLogin, addLogout } from './commands/login.js'
import { addTerminal } from './commands/terminal.js'
import { addDownload, addUpload } from './commands/transfer.js'
import { addLogs, addVm } from './commands/vm.js'
import { logLevels } from './context.js'

/** sysexits.h */
const EX_USAGE = 64
/** What a shell reports for a program that SIGPIPE ended. */
const SIGPIPE_STATUS = 141

export function buildProgram(asJson: boolean): Command {
  const program = new Command('bandsox')
    .description('A real virtual machine per sandbox.')
    .version(packageVersion())
    .enablePositionalOptions()
    .configureOutput(asJson ? { writeErr: () => undefined } : {}) // `reportError` says it then, as JSON
    .configureHelp({ showGlobalOptions: true })
    .exitOverride()
  for (const option of globalOptions()) program.addOption(option)
  addCreate(program)
  addRun(program)
  addExec(program)
  addTerminal(program)
  addUpload(program)
  addDownload(program)
  addVm(program)
  addImage(program)
  addLogin(program)
  addLogout(program)
  addLogs(program)
  addDoctor(program)
  for (const command of program.commands) allowGlobalOptions(command)
  return program
}

const globalOptions = (): Option[] => [
  new Option(
    '--storage <folder>',
    'folder of all state (default: $BANDSOX_STORAGE, /var/lib/bandsox for root, else ~/.local/share/bandsox)',
  ),
  new Option('--json', 'print JSON, for programs'),
  new Option('--log-level <level>', 'what to log on stderr (default: "warn")').choices(logLevels),
]

/** They are understood before and after the command's name. */
function allowGlobalOptions(command: Command): void {
  command.exitOverride()
  if (command.commands.length === 0) for (const option of globalOptions()) command.addOption(option.hideHelp())
  for (const child of command.commands) allowGlobalOptions(child)
}

function packageVersion(): string {
  const file = new URL('../../package.json', import.meta.url)
  return z.object({ version: z.string() }).parse(JSON.parse(readFileSync(file, 'utf8'))).version
}

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
