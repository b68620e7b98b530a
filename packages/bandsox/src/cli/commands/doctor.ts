/** `doctor`: what this host has and lacks, and what dead processes have left; each with its remedy. */
import { messageOf } from '@bandsox/sdk'
import type { Command } from 'commander'
import type { Check } from '../../sandbox/doctor.js'
import { type Context, contextOf } from '../context.js'
import { table } from '../text.js'
import { type Cleaned, cleanUp } from './cleanup.js'

const marks: Record<Check['verdict'], string> = { ok: 'ok', slow: 'slow', missing: 'MISSING' }

export function addDoctor(program: Command): void {
  program
    .command('doctor')
    .option('--fix', 'set right what dead processes have left, each explained before it is done')
    .description('check what this host has and lacks; exits with 1 when a sandbox could not start')
    .action(async (options: { fix?: boolean }, command: Command) => {
      const { examineHost } = await import('../../sandbox/doctor.js') // late, for the sake of completion: see context.ts
      const context = contextOf(command)
      const checks = await examineHost(context.config)
      const hints = checks
        .filter(({ hint }) => hint !== undefined)
        .map(({ subject, hint }) => `hint: ${subject}: ${hint}`)
      const text = table(
        ['CHECK', 'VERDICT', 'FOUND'],
        checks.map(({ subject, verdict, found }) => [subject, marks[verdict], found]),
      )
      if (!context.isJson) context.print([text, ...hints].join('\n'), undefined)
      const leftovers = await leftoversOf(context, options.fix === true)
      if (context.isJson) context.print('', { checks, ...leftovers })
      else if (leftovers.found.length > 0)
        context.print(
          options.fix === true ? 'all of these are done' : 'hint: set them right: bandsox doctor --fix',
          undefined,
        )
      if (leftovers.error !== undefined) context.warn(`cannot look for leftovers: ${leftovers.error}`)
      if (checks.some(({ verdict }) => verdict === 'missing') || leftovers.error !== undefined) process.exitCode = 1
    })
}

/** A storage that cannot be opened is one more thing that is found. */
async function leftoversOf(context: Context, fix: boolean): Promise<{ found: Cleaned[]; error?: string }> {
  try {
    return { found: await cleanUp(context, { dryRun: !fix }) }
  } catch (error) {
    return { found: [], error: messageOf(error) }
  }
}
