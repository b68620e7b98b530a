/** `doctor`: what this host has and lacks, and what dead processes have left; each with its remedy. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import type { Command } from 'commander'
import type { Check } from '../../sandbox/doctor.js'
import { type Context, contextOf } from '../context.js'
import { linkReportText } from '../link-report-text.js'
import { table } from '../text.js'
import { type Cleaned, cleanUp } from './cleanup.js'

const marks: Record<Check['verdict'], string> = { ok: 'ok', slow: 'slow', advice: 'advice', missing: 'MISSING' }

interface Options {
  fix?: boolean
  production?: boolean
}

export function addDoctor(program: Command): void {
  program
    .command('doctor')
    .argument('[vm]', 'a running sandbox, whose links are looked at in place of the host')
    .option('--fix', 'set right what dead processes have left, each explained before it is done')
    .option('--production', 'also whether it is set up as is recommended for guests of many owners; fails nothing')
    .description(
      'check what this host has and lacks, or the links of a sandbox; exits with 1 when one could not start, or no link works',
    )
    .action(async (vm: string | undefined, options: Options, command: Command) => {
      if (vm !== undefined) {
        await examineSandbox(contextOf(command), vm, options)
        return
      }
      const { examineHost } = await import('../../sandbox/doctor.js') // late, for the sake of completion: see context.ts
      const context = contextOf(command)
      const checks = await examineHost({ ...context.config, isProduction: options.production === true })
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

/** Exits with 1 when no link works. */
async function examineSandbox(context: Context, vm: string, { fix, production }: Options): Promise<void> {
  if (fix === true) throw new BandSoxError('bad-request', '--fix is for the host: leave the sandbox out')
  if (production === true) throw new BandSoxError('bad-request', '--production is for the host: leave the sandbox out')
  const sandbox = await (await context.open()).get(vm)
  const report = await sandbox.links({ signal: context.signal })
  context.print(linkReportText(report), report)
  if (report.current === null) process.exitCode = 1
}

/** A storage that cannot be opened is one more thing that is found. */
async function leftoversOf(context: Context, fix: boolean): Promise<{ found: Cleaned[]; error?: string }> {
  try {
    return { found: await cleanUp(context, { dryRun: !fix }) }
  } catch (error) {
    return { found: [], error: messageOf(error) }
  }
}
