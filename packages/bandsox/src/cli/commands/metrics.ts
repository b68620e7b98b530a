/** `metrics`: what the VMM of a sandbox counts, and has logged. */
import { BandSoxError, printableLine, type SandboxMetrics } from '@bandsox/sdk'
import type { Command } from 'commander'
import { contextOf } from '../context.js'
import { table } from '../text.js'

/** Firecracker has groups of groups, and no more. */
const MAX_DEPTH = 3

export function addMetrics(program: Command): void {
  program
    .command('metrics')
    .argument('<vm>', 'id, id prefix or name')
    .option('--all', 'also what has not happened at all')
    .option('--log', "the last lines of the VMM's log, in place of what it counts")
    .description(
      "show what a running sandbox's VMM counts, since it was last asked or, at most, in the last minute; Firecracker does",
    )
    .action(async (vm: string, options: { all?: boolean; log?: boolean }, command: Command) => {
      const context = contextOf(command)
      const sandbox = await (await context.open()).get(vm)
      const metrics = await sandbox.metrics()
      context.print(options.log === true ? logText(metrics) : countersText(metrics, options.all === true), metrics)
    })
}

function logText({ vmm, log }: SandboxMetrics): string {
  if (log === null) throw keepsNone(vmm, 'log')
  return log.length === 0 ? 'It has logged nothing.' : log.join('\n')
}

function countersText({ vmm, counters }: SandboxMetrics, isAll: boolean): string {
  if (counters === null) throw keepsNone(vmm, 'metrics')
  const rows = flat(counters).filter(([, value]) => isAll || value !== '0')
  return rows.length === 0 ? 'Nothing has happened.' : table(['METRIC', 'VALUE'], rows)
}

const keepsNone = (vmm: string, what: string): BandSoxError =>
  new BandSoxError('host-unsupported', `${vmm} keeps no ${what} of its own`, {
    hint: 'Firecracker does: start the sandbox with --vmm firecracker',
  })

/** Groups lie within groups: each value gets its whole way as its name. A VMM may say anything: it is bounded, and harmless. */
function flat(group: Record<string, unknown>, prefix = '', depth = 0): [string, string][] {
  return Object.entries(group).flatMap(([name, value]): [string, string][] => {
    const whole = printableLine(`${prefix}${name}`)
    if (typeof value !== 'object' || value === null) return [[whole, printableLine(String(value))]]
    return depth === MAX_DEPTH ? [[whole, '…']] : flat(value as Record<string, unknown>, `${whole}.`, depth + 1)
  })
}
