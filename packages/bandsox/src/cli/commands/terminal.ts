/** `terminal`: a shell in a sandbox, at this terminal. */
import type { Command } from 'commander'
import { contextOf } from '../context.js'
import { LEAVE_KEYS_HELP } from '../leave-keys.js'
import { environmentOption } from '../option-parsers.js'
import { attachTerminal, requireTerminal } from '../terminal.js'

/** In every image with a shell, whatever shell its users have. */
const SHELL = '/bin/sh'

interface TerminalCommandOptions {
  env?: Record<string, string>
  workdir?: string
  user?: string
}

export function addTerminal(program: Command): void {
  program
    .command('terminal')
    .argument('<vm>', 'id, id prefix or name')
    .argument('[command...]', `the command and its arguments (default: ${SHELL})`)
    .option('-w, --workdir <path>', 'working folder in the guest')
    .option('-u, --user <user>', 'name, uid, name:group or uid:gid')
    .option('-e, --env <NAME=value>', 'variable for this command; may be repeated', environmentOption)
    .passThroughOptions()
    .description("open a shell, or another command, in a sandbox; exits with the command's own status")
    .addHelpText('after', `\n${LEAVE_KEYS_HELP}`)
    .action(async (vm: string, words: string[], options: TerminalCommandOptions, command: Command) => {
      const context = contextOf(command)
      requireTerminal(context, 'run it without one: bandsox exec VM -- COMMAND')
      const sandbox = await (await context.open()).get(vm)
      const argv = words[0] === '--' ? words.slice(1) : words
      const { env, workdir, user } = options
      process.exitCode = await attachTerminal(context, { interactive: true }, (own) =>
        sandbox.exec(argv.length > 0 ? argv : [SHELL], {
          ...own,
          env: { ...own.env, ...env },
          ...(workdir !== undefined && { cwd: workdir }),
          ...(user !== undefined && { user }),
        }),
      )
    })
}
