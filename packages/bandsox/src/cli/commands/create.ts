/** `create`, and the options that it shares with `run`. */
import type { CreateOptions, Metadata } from '@bandsox/sdk'
import type { Command } from 'commander'
import type { LocalSandbox } from '../../sandbox/local-sandbox.js'
import { type Context, contextOf } from '../context.js'
import { type LimitOptions, labelOption, limitsFrom, metadataOption, withLimitOptions } from '../description-options.js'
import { IMAGE_ARGUMENT, type ImageOptions, imageOptions, withImageOptions } from '../image-options.js'
import { imageProgress } from '../image-progress.js'
import { durationOption, environmentOption } from '../option-parsers.js'
import { type ShapeOptions, shapeFrom, withShapeOptions } from '../shape-options.js'
import { durationText } from '../text.js'

export interface MakeOptions extends ShapeOptions, ImageOptions, LimitOptions {
  name?: string
  unique?: boolean
  label?: Record<string, string>
  metadata?: Metadata
  env?: Record<string, string>
  bootTimeout?: number
  cold?: boolean
  trackChanges?: boolean
}

export function withMakeOptions(command: Command): Command {
  return withShapeOptions(withLimitOptions(withImageOptions(command, 'missing')))
    .option('--name <name>', 'a name to use in place of the id')
    .option('--unique', 'refuse a name that another sandbox has')
    .option('-l, --label <key=value>', 'label to find it by; may be repeated', labelOption)
    .option('--metadata <json>', "a program's own notes on it, as a JSON object", metadataOption)
    .option('-e, --env <NAME=value>', 'variable for every command in it; may be repeated', environmentOption)
    .option('--cold', 'boot it, also where a template is at hand, and make none')
    .option('--track-changes', 'let snapshots of it hold changes only (Firecracker); it is booted, and slower')
    .option('--boot-timeout <time>', 'how long to wait for its agent (default: 60s)', durationOption)
}

/** Makes the sandbox, and shows what its image takes meanwhile. */
export async function makeSandbox(context: Context, image: string, options: MakeOptions): Promise<LocalSandbox> {
  const wanted = {
    ...descriptionFrom(options),
    ...shapeFrom(options),
    ...(await imageOptions(options, context.signal)),
  }
  const bandsox = await context.open()
  const { onEvent, clear } = imageProgress(context)
  try {
    return await bandsox.create(image, { ...wanted, onImageEvent: onEvent })
  } finally {
    clear()
  }
}

function descriptionFrom(options: MakeOptions): CreateOptions {
  const { name, unique, label, metadata, env, bootTimeout, cold, trackChanges } = options
  return {
    limits: limitsFrom(options),
    ...(name !== undefined && { name }),
    ...(unique !== undefined && { unique }),
    ...(label !== undefined && { labels: label }),
    ...(metadata !== undefined && { metadata }),
    ...(env !== undefined && { env }),
    ...(bootTimeout !== undefined && { bootTimeoutMs: bootTimeout }),
    ...(cold !== undefined && { cold }),
    ...(trackChanges !== undefined && { tracksChanges: trackChanges }),
  }
}

export function addCreate(program: Command): void {
  withMakeOptions(program.command('create').argument('<image>', IMAGE_ARGUMENT))
    .description('make and start a sandbox')
    .action(async (image: string, options: MakeOptions, command: Command) => {
      const context = contextOf(command)
      const startedAt = performance.now()
      const sandbox = await makeSandbox(context, image, options)
      const info = await sandbox.info()
      context.print(
        `VM created: ${info.id}${info.name === undefined ? '' : ` (${info.name})`} in ${durationText(performance.now() - startedAt)}`,
        info,
      )
    })
}
