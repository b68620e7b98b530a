/** Runs the agent's tools for copies: PROTOCOL.md section 7. */
import { BandSoxError, type ExecResult, type FileEntry, type LinkKind, printableLine } from '@bandsox/sdk'
import type { Agent } from '../../guest/agent.js'
import { statFile } from '../../guest/inspect.js'
import { startJob } from '../../guest/job.js'
import { ReportReader, type ToolReport } from './report.js'

const CAPABILITY = 'tools'

/** @throws `agent-incompatible`: an agent without the tools would say something about a missing `argv`. */
export async function requireTools(agent: Agent, signal: AbortSignal | undefined): Promise<void> {
  await agent.use(
    async ({ hello }) => {
      if (hello.capabilities.includes(CAPABILITY)) return
      throw new BandSoxError('agent-incompatible', `the agent ${printableLine(hello.agent)} cannot copy folders`)
    },
    { signal },
  )
}

/**
 * Runs a tool to its end.
 *
 * @param onOutput Gets its standard output, at its own pace.
 * @throws What the tool could not do, as an error of ours.
 */
export async function runTool(
  agent: Agent,
  words: readonly string[],
  options: {
    input?: AsyncIterable<Uint8Array>
    onOutput?: (data: Buffer) => Promise<void>
    signal?: AbortSignal | undefined
    link?: LinkKind | undefined
  },
): Promise<{ report: ToolReport; ended: ExecResult }> {
  const { input, onOutput, signal, link } = options
  const job = startJob(
    async () => agent,
    { tool: [...words] },
    { ...(input && { input }), ...(signal && { signal }), ...(link && { link }) },
  )
  const said = new ReportReader()
  for await (const { stream, data } of job.output) {
    if (stream === 'stderr') said.add(data)
    else await onOutput?.(Buffer.from(data.buffer, data.byteOffset, data.byteLength))
  }
  const ended = await job.wait()
  return { report: said.take(ended), ended }
}

/** @returns undefined where nothing is. */
export async function lookInGuest(
  agent: Agent,
  path: string,
  options: { followLinks: boolean; signal: AbortSignal | undefined },
): Promise<FileEntry | undefined> {
  const { followLinks, signal } = options
  try {
    return await statFile(agent, path, { followLinks, ...(signal && { signal }) })
  } catch (error) {
    if (error instanceof BandSoxError && error.code === 'file-not-found') return undefined
    throw error
  }
}

export const patternWords = (include: readonly string[] = [], exclude: readonly string[] = []): string[] => [
  ...include.flatMap((pattern) => ['--include', pattern]),
  ...exclude.flatMap((pattern) => ['--exclude', pattern]),
]

/** `SRC/.`: what is in it, not itself. */
export const meansContent = (path: string): boolean => path === '.' || path.endsWith('/.')
