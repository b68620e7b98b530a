/** `vm …`: the life of a sandbox, from the list of all to the removal of one. */
import type { SandboxChanges, SandboxFilter, StateName } from '@bandsox/sdk'
import { Command } from 'commander'
import type { LocalSandbox } from '../../sandbox/local-sandbox.js'
import { type Context, contextOf } from '../context.js'
import {
  type LimitOptions,
  labelChanges,
  labelFilterOption,
  limitsFrom,
  metadataFilterOption,
  metadataOption,
  statesOption,
  withLimitOptions,
} from '../description-options.js'
import { forEachSandbox } from '../each.js'
import { durationOption, integerOption } from '../option-parsers.js'
import { listText, showText } from '../vm-text.js'
import { forkCommand, saveCommand } from './snapshot.js'

export function addVm(program: Command): void {
  const vm = program.command('vm').description('the sandboxes of this host')
  vm.addCommand(listCommand())
  vm.addCommand(showCommand())
  vm.addCommand(startCommand())
  vm.addCommand(stopCommand())
  vm.addCommand(
    action('kill', 'end it at once, as a power cut would; its disk is kept', 'killed', (sandbox) => sandbox.kill()),
  )
  vm.addCommand(restartCommand())
  vm.addCommand(action('pause', 'halt its CPUs', 'paused', (sandbox) => sandbox.pause()))
  vm.addCommand(
    action('resume', 'let its CPUs run on; load one that was hibernated', 'resumed', (sandbox, { signal }) =>
      sandbox.resume({ signal }),
    ),
  )
  vm.addCommand(
    action(
      'hibernate',
      'save its state to disk and end its machine; whatever uses it wakes it up',
      'hibernated',
      (sandbox, { signal }) => sandbox.hibernate({ signal }),
    ),
  )
  vm.addCommand(saveCommand())
  vm.addCommand(forkCommand())
  vm.addCommand(renameCommand())
  vm.addCommand(labelCommand())
  vm.addCommand(updateCommand())
  vm.addCommand(waitCommand())
  vm.addCommand(deleteCommand())
}

/** What users of the earlier guides type: the same commands without `vm`. */
export function addShortcuts(program: Command): void {
  for (const command of [listCommand(), startCommand(), stopCommand()]) program.addCommand(command)
}

interface ListOptions {
  state?: StateName[]
  name?: string
  label?: Record<string, string | null>
  metadata?: NonNullable<SandboxFilter['metadata']>
  limit?: number
  quiet?: boolean
}

function listCommand(): Command {
  return new Command('list')
    .alias('ls')
    .option('--state <state>', 'only those in this state, or several by commas', statesOption)
    .option('--name <name>', 'only those with this name')
    .option('-l, --label <key[=value]>', 'only those with this label; may be repeated', labelFilterOption)
    .option(
      '--metadata <key=value>',
      'only those with this value in their metadata; may be repeated',
      metadataFilterOption,
    )
    .option('--limit <count>', 'only the newest', integerOption)
    .option('-q, --quiet', 'print ids only')
    .description('list the sandboxes')
    .action(async (options: ListOptions, command: Command) => {
      const context = contextOf(command)
      const { state, name, label, metadata, limit, quiet } = options
      const infos = await (await context.open()).list({
        ...(state !== undefined && { states: state }),
        ...(name !== undefined && { name }),
        ...(label !== undefined && { labels: label }),
        ...(metadata !== undefined && { metadata }),
        ...(limit !== undefined && { limit }),
      })
      context.print(quiet === true ? infos.map(({ id }) => id).join('\n') : listText(infos), infos)
    })
}

function showCommand(): Command {
  return new Command('show')
    .argument('<vm>', 'id, id prefix or name')
    .description('all that is known of one')
    .action(async (name: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const info = await (await (await context.open()).get(name)).info()
      context.print(showText(info), info)
    })
}

const bootTimeout = (command: Command): Command =>
  command.option('--boot-timeout <time>', 'how long to wait for its agent (default: 60s)', durationOption)

function startCommand(): Command {
  return bootTimeout(
    action<{ bootTimeout?: number }>(
      'start',
      'start one that was stopped, with its disk',
      'started',
      (sandbox, context, options) =>
        sandbox.start({
          signal: context.signal,
          ...(options.bootTimeout !== undefined && { bootTimeoutMs: options.bootTimeout }),
        }),
    ),
  )
}

function restartCommand(): Command {
  return bootTimeout(
    action<{ bootTimeout?: number }>(
      'restart',
      'stop it, if it runs, and start it again',
      'restarted',
      (sandbox, context, options) =>
        sandbox.restart({
          signal: context.signal,
          ...(options.bootTimeout !== undefined && { bootTimeoutMs: options.bootTimeout }),
        }),
    ),
  )
}

const stopCommand = (): Command =>
  action(
    'stop',
    'shut it down, by force where it does not listen; its disk is kept',
    'stopped',
    (sandbox, { signal }) => sandbox.stop({ signal }),
  )

function renameCommand(): Command {
  return new Command('rename')
    .argument('<vm>', 'id, id prefix or name')
    .argument('<name>', 'the new name')
    .option('--unique', 'refuse a name that another sandbox has')
    .description('give it another name')
    .action(async (vm: string, name: string, options: { unique?: boolean }, command: Command) => {
      const context = contextOf(command)
      const sandbox = await (await context.open()).get(vm)
      await sandbox.rename(name, { unique: options.unique === true })
      context.print(`VM renamed: ${sandbox.id} (${name})`, await sandbox.info())
    })
}

function labelCommand(): Command {
  return new Command('label')
    .argument('<vm>', 'id, id prefix or name')
    .argument('<label...>', 'key=value to set one, key- to remove one')
    .description('set and remove labels')
    .action(async (vm: string, words: string[], _options: unknown, command: Command) => {
      const context = contextOf(command)
      const labels = labelChanges(words)
      const sandbox = await (await context.open()).get(vm)
      await sandbox.update({ labels })
      const info = await sandbox.info()
      const text = Object.entries(info.labels).map(([key, value]) => `${key}=${value}`)
      context.print(text.length === 0 ? 'no labels' : text.join('\n'), info)
    })
}

interface UpdateOptions extends LimitOptions {
  vcpu?: number
  mem?: number
  metadata?: NonNullable<SandboxChanges['metadata']>
}

function updateCommand(): Command {
  return withLimitOptions(new Command('update').argument('<vm...>', 'ids, id prefixes or names'))
    .option('--vcpu <count>', 'virtual CPUs from the next start on', integerOption)
    .option('--mem <MiB>', 'guest memory: from the next start on; of one that runs, less than it has', integerOption)
    .option('--metadata <json>', 'replace the metadata', metadataOption)
    .description('change limits at once, CPUs of one that is stopped')
    .action(async (names: string[], options: UpdateOptions, command: Command) => {
      const context = contextOf(command)
      const limits = limitsFrom(options)
      const changes: SandboxChanges = {
        ...(options.vcpu !== undefined && { vcpu: options.vcpu }),
        ...(options.mem !== undefined && { memoryMib: options.mem }),
        ...(options.metadata !== undefined && { metadata: options.metadata }),
        ...(Object.keys(limits).length > 0 && { limits }),
      }
      await forEachSandbox(context, names, async (sandbox) => {
        await sandbox.update(changes)
        context.print(`VM updated: ${sandbox.id}`, await sandbox.info())
      })
    })
}

function waitCommand(): Command {
  return new Command('wait')
    .argument('<vm>', 'id, id prefix or name')
    .option('--for <state>', 'one state, or several by commas (default: stopped,failed)', statesOption)
    .option('--timeout <time>', 'give up after this time, such as 30s', durationOption)
    .description('wait until it is in a state, and print which')
    .action(async (vm: string, options: { for?: StateName[]; timeout?: number }, command: Command) => {
      const context = contextOf(command)
      const sandbox = await (await context.open()).get(vm)
      const state = await sandbox.waitFor(options.for ?? ['stopped', 'failed'], {
        signal: context.signal,
        ...(options.timeout !== undefined && { timeoutMs: options.timeout }),
      })
      context.print(state.kind, { id: sandbox.id, state })
    })
}

function deleteCommand(): Command {
  return new Command('delete')
    .alias('rm')
    .argument('<vm...>', 'ids, id prefixes or names')
    .option('-f, --force', 'also one that runs, without shutting it down')
    .description('remove a sandbox and its disk')
    .action(async (names: string[], options: { force?: boolean }, command: Command) => {
      const context = contextOf(command)
      await forEachSandbox(context, names, async (sandbox) => {
        await sandbox.delete({ force: options.force === true })
        context.print(`VM deleted: ${sandbox.id}`, { id: sandbox.id, deleted: true })
      })
    })
}

function action<Options = unknown>(
  name: string,
  description: string,
  done: string,
  act: (sandbox: LocalSandbox, context: Context, options: Options) => Promise<void>,
): Command {
  return new Command(name)
    .argument('<vm...>', 'ids, id prefixes or names')
    .description(description)
    .action(async (names: string[], options: Options, command: Command) => {
      const context = contextOf(command)
      await forEachSandbox(context, names, async (sandbox) => {
        await act(sandbox, context, options)
        context.print(`VM ${done}: ${sandbox.id}`, await sandbox.info())
      })
    })
}
