/** `system df`, `info` and `prune`: what the storage takes, what the host gives, and how to get room back. */
import { messageOf } from '@bandsox/sdk'
import type { Command } from 'commander'
import type { LocalBandSox } from '../../sandbox/local-bandsox.js'
import { type Context, contextOf } from '../context.js'
import { counted, sizeText, table } from '../text.js'

export function addSystem(program: Command): void {
  const system = program.command('system').description('the storage and the host')
  system
    .command('df')
    .description('what the storage takes of the disk')
    .action(async (_options: unknown, command: Command) => {
      const context = contextOf(command)
      const usage = await (await context.open()).diskUsage()
      const { images, snapshots, templates, sandboxes, otherBytes, freeBytes, totalBytes } = usage
      const rows = [
        [
          'images',
          String(images.count),
          sizeText(images.bytes),
          `${sizeText(images.unusedBytes)} of ${images.unusedCount}`,
        ],
        [
          'VMs',
          String(sandboxes.count),
          sizeText(sandboxes.bytes),
          `${sizeText(sandboxes.atRestBytes)} of ${sandboxes.atRestCount}`,
        ],
        ...Object.entries({ snapshots, templates }).map(([name, { count, bytes, unusedCount, unusedBytes }]) => [
          ...[name, String(count), sizeText(bytes), `${sizeText(unusedBytes)} of ${unusedCount}`],
        ]),
        ['other', '-', sizeText(otherBytes), '-'],
      ]
      const text = table(['TYPE', 'COUNT', 'SIZE', 'NOT IN USE'], rows)
      context.print(`${text}\n${usage.storage}: ${sizeText(freeBytes)} of ${sizeText(totalBytes)} free`, usage)
    })
  system
    .command('info')
    .description('what this host is, and how much of it is given away')
    .action(async (_options: unknown, command: Command) => {
      const context = contextOf(command)
      const info = await (await context.open()).hostInfo()
      const states = Object.entries(info.sandboxes).map(([state, count]) => `${count} ${state}`)
      const rows = [
        ['storage', info.storage],
        ['kernel', info.kernel],
        ['vmm', `${info.vmm} (${info.accelerator})`],
        ['vsock', info.vsock],
        ['cpus', `${info.cpus}, ${counted(info.vcpusGiven, 'virtual one')} given to running VMs`],
        ['memory', `${info.memoryMib} MiB; ${info.memoryGivenMib} of ${info.memoryBoundMib} MiB given to running VMs`],
        ['VMs', states.length === 0 ? 'none' : states.join(', ')],
        ['images', String(info.images)],
      ]
      context.print(rows.map(([key = '', value = '']) => `${key.padEnd(10)} ${value}`).join('\n'), info)
    })
  system
    .command('prune')
    .option('--all', 'also images that no VM uses')
    .option('--layers', 'also the layers that were kept for the next image')
    .option('--templates', 'also templates that no running VM was started from; the next VM has another one made')
    .option('--stopped', 'also VMs that are stopped or failed, with their disks')
    .option('--dry-run', 'say what would go, and remove nothing')
    .description('remove what nothing refers to')
    .action(async (options: PruneOptions, command: Command) => await prune(contextOf(command), options))
}

interface PruneOptions {
  all?: boolean
  layers?: boolean
  stopped?: boolean
  templates?: boolean
  dryRun?: boolean
}

async function prune(context: Context, { all, layers, stopped, templates, dryRun }: PruneOptions): Promise<void> {
  const bandsox = await context.open()
  const removed: string[] = []
  const atRest = stopped === true ? await bandsox.list({ states: ['stopped', 'failed'] }) : []
  const before = (await bandsox.diskUsage()).freeBytes
  for (const { id, state } of atRest) {
    context.signal.throwIfAborted()
    if (dryRun !== true) {
      try {
        await (await bandsox.get(id)).delete()
      } catch (error) {
        context.warn(`${id} was left: ${messageOf(error)}`) // it was started, or removed, just now
        continue
      }
    }
    removed.push(id)
    if (!context.isJson)
      context.print(`VM ${dryRun === true ? 'would be deleted' : 'deleted'}: ${id} (${state.kind})`, undefined)
  }
  const unusedTemplates = templates === true ? await withoutUsers(bandsox) : []
  if (dryRun === true) {
    const unused = all === true ? (await bandsox.diskUsage()).images.unusedCount : 0
    const images = all === true ? `, and up to ${counted(unused, 'image')} removed` : ''
    const others = templates === true ? `, ${counted(unusedTemplates.length, 'template')} removed` : ''
    return context.print(`${counted(removed.length, 'VM')} would be deleted${images}${others}`, {
      ...{ sandboxes: removed, unusedImages: unused, templates: unusedTemplates },
    })
  }
  const ofTemplates = templates === true ? `, ${counted(unusedTemplates.length, 'template')}` : ''
  for (const id of unusedTemplates) await bandsox.snapshots.delete(id, { force: true })
  const { images } = await bandsox.images.prune({ ...(all === true && { all }), ...(layers === true && { layers }) })
  const freedBytes = Math.max(0, (await bandsox.diskUsage()).freeBytes - before)
  context.print(
    `removed ${counted(removed.length, 'VM')}${ofTemplates} and ${counted(images.length, 'image')}, about ${sizeText(freedBytes)} are free again`,
    { sandboxes: removed, templates: unusedTemplates, images, freedBytes },
  )
}

async function withoutUsers(bandsox: LocalBandSox): Promise<string[]> {
  const all = await bandsox.snapshots.list({ templates: true })
  return all.filter(({ purpose, usedBy }) => purpose === 'template' && usedBy.length === 0).map(({ id }) => id)
}
