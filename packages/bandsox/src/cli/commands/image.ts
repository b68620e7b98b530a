/** `image list`, `show`, `pull`, `import`, `commit`, `tag`, `export`, `remove` and `prune`. */
import {
  type CommitOptions,
  type ImageEvent,
  type ImageInfo,
  type PruneResult,
  type PullOptions,
  printableLine,
} from '@bandsox/sdk'
import { type Command, Option } from 'commander'
import { type Context, contextOf } from '../context.js'
import {
  IMAGE_ARGUMENT,
  type ImageOptions,
  imageOptions,
  withImageOptions,
  withPlatformOption,
} from '../image-options.js'
import { imageProgress, short } from '../image-progress.js'
import { durationOption, environmentOption, wordsOption } from '../option-parsers.js'
import { counted, sizeText, table } from '../text.js'

export function addImage(program: Command): void {
  const image = program.command('image').description('the images of this host')
  image
    .command('list')
    .alias('ls')
    .description('list all of them, the last used first')
    .action(async (_options: unknown, command: Command) => {
      const context = contextOf(command)
      const infos = await (await context.open()).images.list()
      context.print(listText(infos), infos)
    })
  image
    .command('show')
    .argument('<image>', 'reference, id or id prefix')
    .description('all that is known of one: its command, user, environment, layers')
    .action(async (name: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const info = await (await context.open()).images.get(name)
      context.print(showText(info), info)
    })
  withImageOptions(image.command('pull').argument('<image...>', IMAGE_ARGUMENT), 'always')
    .description('fetch images and make their disks')
    .action(async (names: string[], options: ImageOptions, command: Command) => {
      const context = contextOf(command)
      const fetching = await imageOptions(options, context.signal)
      const { images } = await context.open()
      for (const name of names) await fetched(context, fetching, (withEvents) => images.pull(name, withEvents))
    })
  withPlatformOption(
    image
      .command('import')
      .argument('<path>', 'OCI layout (folder or tar), what docker save writes, or a tar of a root file system')
      .option('--reference <name>', 'name that it gets (default: the one in the file)'),
  )
    .description('take an image from a file or a folder')
    .action(async (path: string, options: ImageOptions & { reference?: string }, command: Command) => {
      const context = contextOf(command)
      const { reference } = options
      const fetching = await imageOptions(options, context.signal)
      const { images } = await context.open()
      await fetched(context, fetching, (withEvents) =>
        images.import(path, { ...withEvents, ...(reference !== undefined && { reference }) }),
      )
    })
  image
    .command('commit')
    .argument('<vm>', 'id, name or id prefix of a sandbox, which may be running, or of a snapshot')
    .argument('<name>', 'name of the new image')
    .option('-m, --message <text>', 'what has changed, for its history')
    .option('-a, --author <text>', 'who made it, such as "Jo <jo@example.com>"')
    .option('-e, --env <NAME=value>', 'variable that it sets; may be repeated', environmentOption)
    .option('--cmd <json>', 'its command, as a JSON array of strings', wordsOption)
    .option('--entrypoint <json>', 'its entrypoint, as a JSON array of strings', wordsOption)
    .option('-u, --user <user>', 'user of its command: name or number, with a group after a colon')
    .option('-w, --workdir <path>', 'folder of its command')
    .description('make an image of what a sandbox has changed, now or at a snapshot')
    .action(async (vm: string, reference: string, options: CommitFlags, command: Command) => {
      const context = contextOf(command)
      const { images } = await context.open()
      await fetched(context, { signal: context.signal }, (withEvents) =>
        images.commit(vm, reference, { ...withEvents, ...commitOptions(options) }),
      )
    })
  image
    .command('tag')
    .argument('<image>', 'reference, id or id prefix')
    .argument('<name>', 'another name for it')
    .description('give an image another name')
    .action(async (name: string, reference: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      await (await context.open()).images.tag(name, reference)
      context.print(`Image tagged: ${reference}`, { image: name, reference })
    })
  image
    .command('export')
    .argument('<image>', 'reference, id or id prefix')
    .argument('<path>', 'folder to make, or a file that ends in .tar')
    .description('write an image as an OCI layout')
    .action(async (name: string, path: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      await (await context.open()).images.export(name, path, { signal: context.signal })
      context.print(`Image exported: ${path}`, { image: name, path })
    })
  image
    .command('remove')
    .alias('rm')
    .argument('<image...>', 'references, ids or id prefixes')
    .option('-f, --force', 'also one that sandboxes were made from; they keep their disk')
    .description('remove a reference, and the image with its last one')
    .action(async (names: string[], options: { force?: boolean }, command: Command) => {
      const context = contextOf(command)
      const { images } = await context.open()
      for (const name of names) {
        const result = await images.remove(name, options)
        const what = result.images.length === 0 ? 'Reference removed' : 'Image removed'
        context.print(`${what}: ${name}${freedText(result)}`, { image: name, ...result })
      }
    })
  image
    .command('prune')
    .option('-a, --all', 'also images that have a reference, and that no sandbox was made from')
    .option('--layers', 'also the layers of images that stay: only export needs them')
    .addOption(
      new Option('--older-than <time>', 'only images not used for this time, such as 24h').argParser(durationOption),
    )
    .description('remove what nothing needs: unfinished downloads, old images of moved tags, their layers and disks')
    .action(async (options: { all?: boolean; layers?: boolean; olderThan?: number }, command: Command) => {
      const context = contextOf(command)
      const { olderThan, ...which } = options
      const { images } = await context.open()
      const result = await images.prune({ ...which, ...(olderThan !== undefined && { olderThanMs: olderThan }) })
      context.print(`${counted(result.images.length, 'image')} removed${freedText(result)}`, result)
    })
}

interface CommitFlags extends Omit<CommitOptions, 'workingDir'> {
  workdir?: string
}

const commitOptions = ({ workdir, ...rest }: CommitFlags): CommitOptions => ({
  ...rest,
  ...(workdir !== undefined && { workingDir: workdir }),
})

/** Shows the way there, or with `--json` prints each event, and the image at the end. */
async function fetched<Options extends Pick<PullOptions, 'onEvent' | 'signal'>>(
  context: Context,
  options: Options,
  work: (options: Options) => Promise<{ image: ImageInfo; changed: boolean }>,
): Promise<void> {
  const { onEvent, clear } = imageProgress(context)
  const printed = (event: ImageEvent) => context.print('', event)
  try {
    const { image, changed } = await work({ ...options, onEvent: context.isJson ? printed : onEvent })
    clear()
    const [name = image.id] = image.references
    const text = `${changed ? 'Image ready' : 'Image is up to date'}: ${name} (${short(image.id)}, ${sizeText(image.diskBytes)})`
    context.print(text, { kind: 'image', changed, image })
  } finally {
    clear()
  }
}

const freedText = ({ freedBytes }: PruneResult): string => `, ${sizeText(freedBytes)} freed`

function listText(infos: ImageInfo[]): string {
  if (infos.length === 0) return 'No images found.'
  const rows = infos.flatMap((info) =>
    (info.references.length === 0 ? ['-'] : info.references).map((reference) => [
      ...[reference, short(info.id), info.platform, sizeText(info.diskBytes), sizeText(info.layerBytes)],
      ...[String(info.usedBy.length), info.lastUsedAt],
    ]),
  )
  const head = ['REFERENCE', 'ID', 'PLATFORM', 'DISK', 'LAYERS', 'VMS', 'LAST USED']
  return `${table(head, rows)}\nTotal: ${counted(infos.length, 'image')}`
}

function showText({ config, ...info }: ImageInfo): string {
  const rows = [
    ['id', info.id],
    ['references', info.references.join(', ') || '-'],
    ['digest', info.digest],
    ['platform', info.platform],
    ['entrypoint', JSON.stringify(config.entrypoint)],
    ['command', JSON.stringify(config.cmd)],
    ['user', config.user || 'root'],
    ['folder', config.workingDir],
    ['stop signal', config.stopSignal || 'SIGTERM'],
    ['ports', config.exposedPorts.join(', ') || '-'],
    ['size', `${sizeText(info.diskBytes)} disk, ${sizeText(info.layerBytes)} of layers kept`],
    ['published', info.createdAt ?? '-'],
    ['pulled', info.pulledAt],
    ['last used', info.lastUsedAt],
    ['used by', info.usedBy.join(', ') || '-'],
    ...config.env.map((entry) => ['env', entry]),
    ...Object.entries(config.labels).map(([name, value]) => ['label', `${name}=${value}`]),
    ...info.layers.map(({ digest, sizeBytes }) => ['layer', `${digest}, ${sizeText(sizeBytes)}`]),
  ]
  // An image is untrusted: what it says must not steer a terminal.
  return rows.map(([key = '', value = '']) => `${key.padEnd(12)} ${printableLine(value)}`).join('\n')
}
