/** `doctor`: what this host has and lacks, each with its remedy. */
import type { Command } from 'commander'
import type { Check } from '../../sandbox/doctor.js'
import { contextOf } from '../context.js'
import { table } from '../text.js'

const marks: Record<Check['verdict'], string> = { ok: 'ok', slow: 'slow', missing: 'MISSING' }

export function addDoctor(program: Command): void {
  program
    .command('doctor')
    .description('check what this host has and lacks; exits with 1 when a sandbox could not start')
    .action(async (_options: unknown, command: Command) => {
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
      context.print([text, ...hints].join('\n'), checks)
      if (checks.some(({ verdict }) => verdict === 'missing')) process.exitCode = 1
    })
}
