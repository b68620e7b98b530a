/** `create`, and the options that it shares with `run`. */
import type { CreateOptions, VsockMode } from '@bandsox/sdk'
import { type Command, Option } from 'commander'
import { contextOf } from '../context.js'
import { durationOption, environmentOption, integerOption } from '../option-parsers.js'
import { durationText } from '../text.js'

export interface ShapeOptions {
  name?: string
  vcpu?: number
  mem?: number
  diskSize?: number
  env?: Record<string, string>
  vsock?: VsockMode
  bootTimeout?: number
}

export function withShapeOptions(command: Command): Command {
  return command
    .option('--name <name>', 'a name to use in place of the id')
    .option('--vcpu <count>', 'virtual CPUs (default: 1)', integerOption)
    .option('--mem <MiB>', 'guest memory (default: 256)', integerOption)
    .option('--disk-size <MiB>', 'writable disk, takes what is written (default: 4096)', integerOption)
    .option('-e, --env <NAME=value>', 'variable for every command in it; may be repeated', environmentOption)
    .addOption(new Option('--vsock <mode>', 'the vsock device (default: auto)').choices(['auto', 'on', 'off']))
    .option('--boot-timeout <time>', 'how long to wait for its agent (default: 60s)', durationOption)
}

export function createOptions(options: ShapeOptions, signal: AbortSignal): CreateOptions {
  const { name, vcpu, mem, diskSize, env, vsock, bootTimeout } = options
  return {
    signal,
    ...(name !== undefined && { name }),
    ...(vcpu !== undefined && { vcpu }),
    ...(mem !== undefined && { memoryMib: mem }),
    ...(diskSize !== undefined && { diskMib: diskSize }),
    ...(env !== undefined && { env }),
    ...(vsock !== undefined && { vsock }),
    ...(bootTimeout !== undefined && { bootTimeoutMs: bootTimeout }),
  }
}

export function addCreate(program: Command): void {
  withShapeOptions(program.command('create').argument('<image>', 'such as bandsox/base'))
    .description('make and start a sandbox')
    .action(async (image: string, options: ShapeOptions, command: Command) => {
      const context = contextOf(command)
      const startedAt = performance.now()
      const bandsox = await context.open()
      const sandbox = await bandsox.create(image, createOptions(options, context.signal))
      const info = await sandbox.info()
      context.print(
        `VM created: ${info.id}${info.name === undefined ? '' : ` (${info.name})`} in ${durationText(performance.now() - startedAt)}`,
        info,
      )
    })
}
