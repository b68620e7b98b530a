/** One command for several things: each is tried, whatever becomes of the others, until somebody interrupts it. */
import { BandSoxError, messageOf, printable } from '@bandsox/sdk'
import type { LocalSandbox } from '../sandbox/local-sandbox.js'
import type { Context } from './context.js'

/** @throws as {@link forEachName}. */
export async function forEachSandbox(
  context: Context,
  names: readonly string[],
  act: (sandbox: LocalSandbox) => Promise<void>,
): Promise<void> {
  const bandsox = await context.open()
  await forEachName(context, names, async (name) => await act(await bandsox.get(name)))
}

/**
 * @throws The error of the only one; of several, the last one's, after those before it were printed.
 */
export async function forEachName(
  context: Context,
  names: readonly string[],
  act: (name: string) => Promise<void>,
): Promise<void> {
  const failures: unknown[] = []
  for (const name of names) {
    try {
      context.signal.throwIfAborted()
      await act(name)
    } catch (error) {
      failures.push(error)
      if (context.signal.aborted) break // which is said once
    }
  }
  const last = failures.pop()
  for (const failure of failures) process.stderr.write(line(context, failure))
  if (last !== undefined) throw last
}

function line({ isJson }: Context, failure: unknown): string {
  if (!isJson) return `bandsox: ${printable(messageOf(failure))}\n`
  const code = failure instanceof BandSoxError ? failure.code : 'internal'
  return `${JSON.stringify({ detail: messageOf(failure), code })}\n`
}
