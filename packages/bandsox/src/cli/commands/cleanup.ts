/** `cleanup`: sets right what dead processes have left, and says what it does before it does it. */
import type { Command } from 'commander'
import { type Context, contextOf } from '../context.js'
import { counted } from '../text.js'

export function addCleanup(program: Command): void {
  program
    .command('cleanup')
    .option('--dry-run', 'say what would be done, and do nothing')
    .option('--forget <vm>', 'give up the operation of a process in another container that is known to be gone')
    .description('set right what killed processes have left; every command does so when it begins, too')
    .action(async (options: { dryRun?: boolean; forget?: string }, command: Command) => {
      const context = contextOf(command)
      const cleaned = await cleanUp(context, options)
      const done = options.dryRun === true ? 'to do' : 'done'
      if (!context.isJson)
        context.print(
          cleaned.length === 0 ? 'nothing to clean up' : `${counted(cleaned.length, 'thing')} ${done}`,
          undefined,
        )
      else context.print('', cleaned)
    })
}

export interface Cleaned {
  subject: string
  problem: string
  action: string
}

/** Prints each action before it is taken. */
export async function cleanUp(
  context: Context,
  options: { dryRun?: boolean; forget?: string } = {},
): Promise<Cleaned[]> {
  const cleaned: Cleaned[] = []
  const { LocalBandSox } = await import('../../sandbox/local-bandsox.js') // late, for the sake of completion: see context.ts
  const bandsox = await LocalBandSox.open({
    ...context.openConfig(),
    reconcile: options.dryRun === true ? 'look' : 'all',
    ...(options.forget !== undefined && { forget: options.forget }),
    onFinding({ subject, problem, action }) {
      cleaned.push({ subject, problem, action })
      if (!context.isJson) context.print(`${subject}: ${problem}: ${action}`, undefined)
    },
  })
  await bandsox[Symbol.asyncDispose]()
  return cleaned
}
