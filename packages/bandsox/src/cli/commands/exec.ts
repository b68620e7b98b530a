/** `exec` in a sandbox that runs, and `run` in one made for it. */
import type { ExecOptions, Job, LinkKind } from '@bandsox/sdk'
import type { Command } from 'commander'
import { attach, standardInput } from '../attach.js'
import { type Context, contextOf } from '../context.js'
import { IMAGE_ARGUMENT } from '../image-options.js'
import { LEAVE_KEYS_HELP } from '../leave-keys.js'
import { durationOption, environmentOption, linkOption } from '../option-parsers.js'
import { attachTerminal, requireTerminal } from '../terminal.js'
import { type MakeOptions, makeSandbox, withMakeOptions } from './create.js'

interface CommandOptions {
  interactive?: boolean
  tty?: boolean
  env?: Record<string, string>
  workdir?: string
  user?: string
  timeout?: number
  link?: LinkKind
}

function withCommandOptions(command: Command): Command {
  return command
    .option('-i, --interactive', 'pass standard input on')
    .option('-t, --tty', 'give the command a terminal; with -i, this one')
    .option('-w, --workdir <path>', 'working folder in the guest')
    .option('-u, --user <user>', 'name, uid, name:group or uid:gid')
    .option('--timeout <time>', 'kill the command after this time, such as 30s', durationOption)
    .addOption(linkOption())
    .passThroughOptions()
    .addHelpText('after', `\n${LEAVE_KEYS_HELP}`)
}

/** Before a sandbox is made for it. */
function requireTerminalFor(options: CommandOptions, context: Context): void {
  if (options.tty === true) requireTerminal(context, 'leave out -t')
}

/** @returns The exit status. */
async function runAttached(
  context: Context,
  options: CommandOptions,
  start: (options: ExecOptions) => Job,
): Promise<number> {
  const own = execOptions(options)
  const interactive = options.interactive === true
  if (options.tty === true)
    return await attachTerminal(context, { interactive }, (terminal) =>
      start({ ...own, ...terminal, env: { ...terminal.env, ...own.env } }),
    )
  const job = start({ ...own, signal: context.signal, ...(interactive && { input: standardInput() }) })
  return await attach(context, job)
}

function execOptions({ env, workdir, user, timeout, link }: CommandOptions): ExecOptions {
  return {
    ...(env !== undefined && { env }),
    ...(workdir !== undefined && { cwd: workdir }),
    ...(user !== undefined && { user }),
    ...(timeout !== undefined && { timeoutMs: timeout }),
    ...(link !== undefined && { link }),
  }
}

export function addExec(program: Command): void {
  withCommandOptions(
    program
      .command('exec')
      .argument('<vm>', 'id, id prefix or name')
      .argument('<command...>', 'the command and its arguments; a single one with --shell'),
  )
    .option('-e, --env <NAME=value>', 'variable for this command; may be repeated', environmentOption)
    .option('--shell', 'give the words, joined by spaces, to /bin/sh -c')
    .description("run a command in a sandbox; exits with the command's own status")
    .action(async (vm: string, words: string[], options: CommandOptions & { shell?: boolean }, command: Command) => {
      const context = contextOf(command)
      requireTerminalFor(options, context)
      const sandbox = await (await context.open()).get(vm)
      const argv = withoutSeparator(words)
      const commandLine = options.shell === true ? argv.join(' ') : argv
      process.exitCode = await runAttached(context, options, (each) => sandbox.exec(commandLine, each))
    })
}

export function addRun(program: Command): void {
  withCommandOptions(
    withMakeOptions(
      program
        .command('run')
        .argument('<image>', IMAGE_ARGUMENT)
        .argument('[command...]', "arguments of the image's entrypoint (default: the image's own command)"),
    ),
  )
    .option('--keep', 'leave the sandbox running afterwards')
    .description("make a sandbox, run the image's entrypoint with a command, and remove the sandbox")
    .action(
      async (
        image: string,
        words: string[],
        options: CommandOptions & MakeOptions & { keep?: boolean },
        command: Command,
      ) => {
        const context = contextOf(command)
        requireTerminalFor(options, context)
        const sandbox = await makeSandbox(context, image, options)
        try {
          const argv = withoutSeparator(words)
          const argvOrOwn = argv.length > 0 ? argv : undefined
          process.exitCode = await runAttached(context, options, (each) => sandbox.run(argvOrOwn, each))
        } finally {
          if (options.keep === true) announceKept(context, sandbox.id)
          else await sandbox.delete({ force: true })
        }
      },
    )
}

/** `exec VM -- command`: the separator is ours, a second one is the command's. */
const withoutSeparator = (words: string[]): string[] => (words[0] === '--' ? words.slice(1) : words)

function announceKept(context: Context, id: string): void {
  if (!context.isJson) process.stderr.write(`sandbox ${id} keeps running: bandsox vm delete --force ${id}\n`)
}
