/** `snapshot …`: saved states of sandboxes. `vm save` and `vm fork` make them of one as well. */
import type { Limits, Metadata, RestoreOptions, SnapshotInfo, SnapshotOptions } from '@bandsox/sdk'
import { Command } from 'commander'
import { contextOf } from '../context.js'
import { type LimitOptions, labelOption, limitsFrom, metadataOption, withLimitOptions } from '../description-options.js'
import { forEachName } from '../each.js'
import { durationOption, environmentOption, integerOption } from '../option-parsers.js'
import { snapshotListText, snapshotShowText } from '../snapshot-text.js'
import { durationText, sizeText } from '../text.js'

const SNAPSHOT_ARGUMENT = 'id, id prefix or name of the snapshot'
const VM_ARGUMENT = 'id, id prefix or name'

export function addSnapshot(program: Command): void {
  const snapshot = program.command('snapshot').description('saved states of sandboxes, to go on from')
  snapshot.addCommand(createCommand())
  snapshot.addCommand(listCommand())
  snapshot.addCommand(showCommand())
  snapshot.addCommand(restoreCommand())
  snapshot.addCommand(renameCommand())
  snapshot.addCommand(deleteCommand())
  snapshot.addCommand(verifyCommand())
  snapshot.addCommand(mergeCommand())
  snapshot.addCommand(exportCommand())
  snapshot.addCommand(importCommand())
}

interface SaveOptions {
  name?: string
  metadata?: Metadata
  diff?: boolean
  hooksTimeout?: number
}

const withSaveOptions = (command: Command): Command =>
  command
    .option('--metadata <json>', "a program's own notes on it, as a JSON object", metadataOption)
    .option('--diff', 'only what has changed since the last one; needs Firecracker, and --track-changes at its start')
    .option('--hooks-timeout <time>', "how long the guest's own hooks may take (default: 10s)", durationOption)

const snapshotOptions = (
  { name, metadata, diff, hooksTimeout }: SaveOptions,
  signal: AbortSignal,
): SnapshotOptions => ({
  signal,
  ...(name !== undefined && { name }),
  ...(metadata !== undefined && { metadata }),
  ...(diff !== undefined && { diff }),
  ...(hooksTimeout !== undefined && { hooksTimeoutMs: hooksTimeout }),
})

async function save(vm: string, options: SaveOptions, command: Command): Promise<void> {
  const context = contextOf(command)
  const sandbox = await (await context.open()).get(vm)
  const info = await sandbox.snapshot(snapshotOptions(options, context.signal))
  const stood = `${sandbox.id} stood still for ${durationText(info.pauseMs)}`
  context.print(`Snapshot created: ${info.id} (name=${info.name ?? '-'}); ${stood}, ${sizesText(info)}`, info)
}

const sizesText = ({ bytes }: SnapshotInfo): string => `memory ${sizeText(bytes.memory)}, disk ${sizeText(bytes.disk)}`

const createCommand = (): Command =>
  withSaveOptions(new Command('create').argument('<vm>', VM_ARGUMENT))
    .option('--name <name>', 'a name to use in place of the id')
    .description('save the state of a sandbox that runs or is paused; it goes on')
    .action((vm: string, options: SaveOptions, command: Command) => save(vm, options, command))

/** As users of the earlier project type it. */
export const saveCommand = (): Command =>
  withSaveOptions(new Command('save').argument('<vm>', VM_ARGUMENT).argument('[name]', 'name of the snapshot'))
    .description('save its state as a snapshot; it goes on')
    .action((vm: string, name: string | undefined, options: SaveOptions, command: Command) =>
      save(vm, { ...options, ...(name !== undefined && { name }) }, command),
    )

const listCommand = (): Command =>
  new Command('list')
    .alias('ls')
    .option('-a, --all', 'also templates, which new sandboxes start from by themselves')
    .option('-q, --quiet', 'print ids only')
    .description('list the snapshots')
    .action(async (options: { all?: boolean; quiet?: boolean }, command: Command) => {
      const context = contextOf(command)
      const infos = await (await context.open()).snapshots.list({ templates: options.all === true })
      context.print(options.quiet === true ? infos.map(({ id }) => id).join('\n') : snapshotListText(infos), infos)
    })

const showCommand = (): Command =>
  new Command('show')
    .argument('<snapshot>', SNAPSHOT_ARGUMENT)
    .description('all that is known of one')
    .action(async (name: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const info = await (await context.open()).snapshots.get(name)
      context.print(snapshotShowText(info), info)
    })

interface RestoreFlags extends LimitOptions {
  name?: string
  unique?: boolean
  label?: Record<string, string>
  metadata?: Metadata
  env?: Record<string, string>
  trackChanges?: boolean
  hooksTimeout?: number
  bootTimeout?: number
}

const withRestoreOptions = (command: Command): Command =>
  withLimitOptions(command)
    .option('-l, --label <key=value>', 'label to find it by; may be repeated', labelOption)
    .option('--metadata <json>', "a program's own notes on it, as a JSON object", metadataOption)
    .option('-e, --env <NAME=value>', 'variable for every command from now on; may be repeated', environmentOption)
    .option('--track-changes', 'let snapshots of it hold changes only; costs its guest speed')
    .option('--hooks-timeout <time>', "how long the guest's own hooks may take (default: 10s)", durationOption)
    .option('--boot-timeout <time>', 'how long to wait for its agent (default: 60s)', durationOption)

function restoreOptions(options: RestoreFlags, signal: AbortSignal): RestoreOptions {
  const { name, unique, label, metadata, env, trackChanges, hooksTimeout, bootTimeout } = options
  const limits: Partial<Limits> = limitsFrom(options)
  return {
    signal,
    ...(name !== undefined && { name }),
    ...(unique !== undefined && { unique }),
    ...(label !== undefined && { labels: label }),
    ...(metadata !== undefined && { metadata }),
    ...(env !== undefined && { env }),
    ...(trackChanges !== undefined && { tracksChanges: trackChanges }),
    ...(hooksTimeout !== undefined && { hooksTimeoutMs: hooksTimeout }),
    ...(bootTimeout !== undefined && { bootTimeoutMs: bootTimeout }),
    ...(Object.keys(limits).length > 0 && { limits }),
  }
}

const restoreCommand = (): Command =>
  withRestoreOptions(new Command('restore').argument('<snapshot>', SNAPSHOT_ARGUMENT))
    .option('--name <name>', 'name of the new sandbox')
    .option('--unique', 'refuse a name that another sandbox has')
    .option('--enable-networking', 'taken for the earlier project’s sake')
    .description('make a sandbox that goes on where the saved one was; any number, also beside it')
    .action(async (name: string, options: RestoreFlags, command: Command) => {
      const context = contextOf(command)
      const { snapshots } = await context.open()
      const { restoreCopyBytes } = await snapshots.get(name)
      const startedAt = performance.now()
      const sandbox = await snapshots.restore(name, restoreOptions(options, context.signal))
      const took = durationText(performance.now() - startedAt)
      const copied = restoreCopyBytes === 0 ? 'nothing copied' : `${sizeText(restoreCopyBytes)} copied`
      context.print(`Snapshot restored to VM: ${sandbox.id} in ${took}, ${copied}`, await sandbox.info())
    })

interface ForkFlags extends RestoreFlags {
  count?: number
}

export const forkCommand = (): Command =>
  withRestoreOptions(new Command('fork').argument('<vm>', VM_ARGUMENT))
    .option('-n, --count <count>', 'how many children (default: 1)', integerOption)
    .option('--name <name>', 'of the child; with more than one, -1, -2 … is put behind')
    .description('make children of a running sandbox, which go on where it is')
    .action(async (vm: string, options: ForkFlags, command: Command) => {
      const context = contextOf(command)
      const sandbox = await (await context.open()).get(vm)
      const { unique: _, ...restore } = restoreOptions(options, context.signal)
      const children = await sandbox.fork({
        ...restore,
        ...(options.count !== undefined && { count: options.count }),
      })
      const infos = await Promise.all(children.map((child) => child.info()))
      context.print(
        infos.map(({ id, name }) => `VM forked: ${id}${name === undefined ? '' : ` (${name})`}`).join('\n'),
        infos,
      )
    })

const renameCommand = (): Command =>
  new Command('rename')
    .argument('<snapshot>', SNAPSHOT_ARGUMENT)
    .argument('<name>', 'the new name')
    .description('give it another name; its id stays')
    .action(async (snapshot: string, name: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const { snapshots } = await context.open()
      const { id } = await snapshots.get(snapshot)
      await snapshots.rename(id, name)
      context.print(`Snapshot renamed: ${id} (${name})`, await snapshots.get(id))
    })

const deleteCommand = (): Command =>
  new Command('delete')
    .alias('rm')
    .argument('<snapshot...>', 'ids, id prefixes or names of snapshots')
    .option('-f, --force', 'also one that running sandboxes were restored from; they keep what they need')
    .description('remove a snapshot')
    .action(async (names: string[], options: { force?: boolean }, command: Command) => {
      const context = contextOf(command)
      const { snapshots } = await context.open()
      await forEachName(context, names, async (name) => {
        const id = await snapshots.delete(name, { force: options.force === true })
        context.print(`Snapshot deleted: ${id}`, { id, deleted: true })
      })
    })

const verifyCommand = (): Command =>
  new Command('verify')
    .argument('[snapshot...]', 'ids, id prefixes or names of snapshots (default: all)')
    .description('read all of it, and compare with what was written down when it was made')
    .action(async (names: string[], _options: unknown, command: Command) => {
      const context = contextOf(command)
      const { snapshots } = await context.open()
      const wanted = names.length > 0 ? names : await snapshots.ids()
      await forEachName(context, wanted, async (name) => {
        const check = await snapshots.verify(name, { signal: context.signal })
        context.print(`Snapshot whole: ${check.id} (${check.files.length} files)`, check)
      })
      if (wanted.length === 0) context.print('No snapshots found.', [])
    })

const mergeCommand = (): Command =>
  new Command('merge')
    .alias('flatten')
    .argument('<snapshot>', SNAPSHOT_ARGUMENT)
    .description('make one of --diff independent of those that it builds on')
    .action(async (name: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const info = await (await context.open()).snapshots.merge(name, { signal: context.signal })
      context.print(`Snapshot whole: ${info.id}, ${sizesText(info)}`, info)
    })

const exportCommand = (): Command =>
  new Command('export')
    .argument('<snapshot>', SNAPSHOT_ARGUMENT)
    .argument('<file>', 'file to write')
    .description('write it into one file, to be imported elsewhere')
    .action(async (name: string, file: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const { bytes } = await (await context.open()).snapshots.export(name, file, { signal: context.signal })
      context.print(`Snapshot exported: ${file} (${sizeText(bytes)})`, { snapshot: name, file, bytes })
    })

const importCommand = (): Command =>
  new Command('import')
    .argument('<file>', 'what snapshot export wrote')
    .option('--name <name>', 'a name for it')
    .description('take a snapshot from a file')
    .action(async (file: string, options: { name?: string }, command: Command) => {
      const context = contextOf(command)
      const info = await (await context.open()).snapshots.import(file, { signal: context.signal, ...options })
      context.print(`Snapshot imported: ${info.id}`, info)
    })
