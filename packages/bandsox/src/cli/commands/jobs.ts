/** `jobs` and `attach`: the commands that run in a sandbox, whoever began them. */
import { BandSoxError, type JobInfo, printableLine } from '@bandsox/sdk'
import type { Command } from 'commander'
import { attach } from '../attach.js'
import { contextOf } from '../context.js'
import { sizeText, table } from '../text.js'

const VM_ARGUMENT = 'id, id prefix or name'

export function addJobs(program: Command): void {
  program
    .command('jobs')
    .argument('<vm>', VM_ARGUMENT)
    .description('list the commands that run in a sandbox, also those that it was restored with')
    .action(async (vm: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const jobs = await (await (await context.open()).get(vm)).jobs({ signal: context.signal })
      context.print(listText(jobs), jobs)
    })
  program
    .command('attach')
    .argument('<vm>', VM_ARGUMENT)
    .argument('<job>', 'id of the command, or the beginning of it; see jobs')
    .description("show what a command writes that runs already; exits with the command's own status, Ctrl-C leaves it")
    .action(async (vm: string, job: string, _options: unknown, command: Command) => {
      const context = contextOf(command)
      const sandbox = await (await context.open()).get(vm)
      const id = idOf(await sandbox.jobs({ signal: context.signal }), job, sandbox.id)
      process.exitCode = await attach(context, sandbox.attach(id, { signal: context.signal }))
    })
}

/** @throws `not-found`, `ambiguous-name`. */
function idOf(jobs: JobInfo[], job: string, sandbox: string): string {
  const [match, ...others] = jobs.filter(({ id }) => id.startsWith(job))
  const hint = `see what runs: bandsox jobs ${sandbox}`
  if (match === undefined)
    throw new BandSoxError('not-found', `no command ${JSON.stringify(job)} runs in sandbox ${sandbox}`, { hint })
  if (others.length === 0) return match.id
  const ids = [match, ...others].map(({ id }) => id.slice(0, ID_LETTERS))
  throw new BandSoxError('ambiguous-name', `${JSON.stringify(job)} means ${ids.length} commands: ${ids.join(', ')}`, {
    hint,
  })
}

function listText(jobs: JobInfo[]): string {
  if (jobs.length === 0) return 'No commands found.'
  const rows = jobs.map((job) => [
    ...[
      job.id.slice(0, ID_LETTERS),
      String(job.pid),
      statusText(job),
      sizeText(job.outputBytes),
      printableLine(job.command),
    ],
  ])
  return table(['ID', 'PID', 'STATUS', 'OUTPUT', 'COMMAND'], rows)
}

/** Enough to tell them apart: they are random. */
const ID_LETTERS = 12

const statusText = ({ hasEnded, isAttached }: JobInfo): string => {
  if (hasEnded) return 'ended'
  return isAttached ? 'running, attached' : 'running'
}
