/** `pool set`, `list`, `remove`: sandboxes that wait to be taken by `create`. */
import type { PoolInfo } from '@bandsox/sdk'
import type { Command } from 'commander'
import { contextOf } from '../context.js'
import { IMAGE_ARGUMENT } from '../image-options.js'
import { durationOption, integerOption } from '../option-parsers.js'
import { type ShapeOptions, shapeFrom, withShapeOptions } from '../shape-options.js'
import { table } from '../text.js'

interface SetOptions extends ShapeOptions {
  size: number
  maxAge?: number
  wait?: boolean
}

export function addPool(program: Command): void {
  const pool = program.command('pool').description('sandboxes that wait to be taken by create')
  withShapeOptions(pool.command('set').argument('<image>', IMAGE_ARGUMENT))
    .requiredOption('--size <count>', 'how many wait', integerOption)
    .option('--max-age <time>', 'one that has waited so long is replaced (default: 1h)', durationOption)
    .option('--wait', 'fill it before returning')
    .description('make a pool of an image, or change it; it is refilled by itself')
    .action(async (image: string, options: SetOptions, command: Command) => {
      const context = contextOf(command)
      const { size, maxAge, wait } = options
      const info = await (await context.open()).pools.set(image, {
        ...{ size, waits: wait === true, signal: context.signal },
        ...shapeFrom(options),
        ...(maxAge !== undefined && { maxAgeMs: maxAge }),
      })
      context.print(`Pool set: ${info.image}, ${info.ready} of ${info.size} ready`, info)
    })
  pool
    .command('list')
    .alias('ls')
    .description('list the pools')
    .action(async (_options: unknown, command: Command) => {
      const context = contextOf(command)
      const infos = await (await context.open()).pools.list()
      context.print(listText(infos), infos)
    })
  pool
    .command('remove')
    .alias('rm')
    .argument('<image...>', 'images, or ids of pools')
    .description('remove a pool, and what waits in it')
    .action(async (images: string[], _options: unknown, command: Command) => {
      const context = contextOf(command)
      const { pools } = await context.open()
      for (const image of images) {
        await pools.remove(image)
        context.print(`Pool removed: ${image}`, { image, removed: true })
      }
    })
  pool
    .command('fill', { hidden: true })
    .argument('<pool>', 'id of the pool')
    .action(async (id: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const { LocalBandSox } = await import('../../sandbox/local-bandsox.js') // late: see context.ts
      // Without our command line: what opens the storage has pools filled, this one as well, and so on.
      const { cliPath: _, ...config } = context.openConfig()
      const filled = await (await LocalBandSox.open(config)).pools.fill(id, context.signal)
      context.print(
        filled === undefined ? 'somebody else fills it' : `${filled.added} added, ${filled.removed} removed`,
        filled ?? null,
      )
    })
}

function listText(infos: PoolInfo[]): string {
  if (infos.length === 0) return 'No pools found.'
  const rows = infos.map((info) => [
    ...[info.image, info.id, `${info.ready} of ${info.size}`, String(info.making)],
    ...[`${info.vcpu}`, `${info.memoryMib} MiB`, ageText(info.maxAgeMs), info.failure ?? '-'],
  ])
  return table(['IMAGE', 'ID', 'READY', 'MAKING', 'VCPU', 'MEMORY', 'MAX AGE', 'FAILURE'], rows)
}

/** As it is written behind `--max-age`. */
function ageText(ms: number): string {
  if (ms % 3_600_000 === 0) return `${ms / 3_600_000}h`
  return ms % 60_000 === 0 ? `${ms / 60_000}m` : `${ms / 1_000}s`
}
