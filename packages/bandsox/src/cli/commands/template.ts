/** `template make`, `list`, `remove`: what new sandboxes start from. They are made by themselves; here ahead of time. */
import type { Command } from 'commander'
import { contextOf } from '../context.js'
import { forEachName } from '../each.js'
import { IMAGE_ARGUMENT, type ImageOptions, imageOptions, withImageOptions } from '../image-options.js'
import { imageProgress } from '../image-progress.js'
import { type ShapeOptions, shapeFrom, withShapeOptions } from '../shape-options.js'
import { snapshotListText } from '../snapshot-text.js'
import { durationText } from '../text.js'

export function addTemplate(program: Command): void {
  const template = program.command('template').description('what new sandboxes start from, made by themselves')
  withShapeOptions(withImageOptions(template.command('make').argument('<image>', IMAGE_ARGUMENT), 'missing'))
    .description('make one now, for sandboxes of an image and a shape')
    .action(async (image: string, options: ShapeOptions & ImageOptions, command: Command) => {
      const context = contextOf(command)
      const startedAt = performance.now()
      const wanted = { ...shapeFrom(options), ...(await imageOptions(options, context.signal)) }
      const bandsox = await context.open()
      const { onEvent, clear } = imageProgress(context)
      const isNew = await bandsox.makeTemplate(image, { ...wanted, onImageEvent: onEvent }).finally(clear)
      const took = durationText(performance.now() - startedAt)
      context.print(isNew ? `Template made: ${image} in ${took}` : `Template is there, or being made: ${image}`, {
        image,
        isNew,
      })
    })
  template
    .command('list')
    .alias('ls')
    .description('list the templates')
    .action(async (_options: unknown, command: Command) => {
      const context = contextOf(command)
      const all = await (await context.open()).snapshots.list({ templates: true })
      const templates = all.filter(({ purpose }) => purpose === 'template')
      context.print(snapshotListText(templates, 'template'), templates)
    })
  template
    .command('remove')
    .alias('rm')
    .argument('[template...]', 'ids, or id prefixes (default: all)')
    .description('remove templates; the next sandbox has another one made')
    .action(async (ids: string[], _options: unknown, command: Command) => {
      const context = contextOf(command)
      const { snapshots } = await context.open()
      const wanted = ids.length > 0 ? ids : await snapshots.ids({ purpose: 'template' })
      await forEachName(context, wanted, async (id) => {
        const removed = await snapshots.removeTemplate(id)
        context.print(`Template removed: ${removed}`, { id: removed, deleted: true })
      })
      if (wanted.length === 0) context.print('No templates found.', [])
    })
}
