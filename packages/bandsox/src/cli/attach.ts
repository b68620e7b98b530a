/** Connects a command in the guest with this process's standard streams, and says with what status to exit. */

import { once } from 'node:events'
import { constants } from 'node:os'
import type { ExecResult, Job } from '@bandsox/sdk'
import type { Context } from './context.js'

/** What shells say of a command that a time limit ended (timeout(1)). */
const TIMED_OUT_STATUS = 124

/** Passes output through at the pace of whoever reads ours. With `--json`, prints the collected result instead. */
export async function attach(context: Context, job: Job): Promise<number> {
  if (context.isJson) {
    const collected = await job.collect()
    context.print('', collected)
    return exitStatus(collected)
  }
  for await (const { stream, data } of job.output) {
    const to = process[stream]
    if (!to.write(data)) await once(to, 'drain')
  }
  return exitStatus(await job.wait())
}

/** The command's own status; for a signal 128 plus its number, as in a shell. */
function exitStatus({ exitCode, signal, timedOut }: ExecResult): number {
  if (timedOut) return TIMED_OUT_STATUS
  if (exitCode !== null) return exitCode
  const numbers: Record<string, number> = constants.signals
  return 128 + (numbers[signal ?? ''] ?? 0)
}

/**
 * Our standard input, as long as the command wants it. It never keeps this process alive: while the command runs its connection
 * does, and afterwards a terminal or pipe that nobody closes must not.
 */
export async function* standardInput(): AsyncGenerator<Uint8Array> {
  process.stdin.unref?.() // a file has none, and ends by itself
  for await (const chunk of process.stdin) yield chunk as Buffer
}
