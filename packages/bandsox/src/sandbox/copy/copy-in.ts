/** A file or folder of this host, copied into the guest. */
import { lstat, stat } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, type CopyOptions, type CopyResult } from '@bandsox/sdk'
import type { Agent, FindAgent } from '../../guest/agent.js'
import { progressReporter } from '../../guest/progress.js'
import { hostError } from './host-error.js'
import { HostPacker } from './pack-host.js'
import { Selection } from './patterns.js'
import { requireSameStream, type ToolReport } from './report.js'
import { lookInGuest, meansContent, requireTools, runTool } from './tool.js'

/** What a failed copy may take to tidy up behind itself. */
const SWEEP_TIMEOUT_MS = 5_000

/** @throws as `Files.copyIn`. */
export async function copyIn(
  findAgent: FindAgent,
  hostPath: string,
  guestPath: string,
  options: CopyOptions,
): Promise<CopyResult> {
  const startedAt = performance.now()
  const { signal } = options
  const selection = new Selection(options.include, options.exclude)
  const source = await sourceOf(hostPath)
  const agent = await findAgent(signal)
  await requireTools(agent, signal)
  const to = await targetOf(agent, source, guestPath, signal)
  const report = progressReporter(options.onProgress, undefined)
  const packer = new HostPacker(source.path, selection, report)
  let failure: unknown
  const input = async function* () {
    try {
      yield* packer.stream()
    } catch (error) {
      failure = error // the job will only say that its input could not be read
      throw error
    }
  }
  const done = await withSweep(agent, to, async () => {
    try {
      return await runTool(agent, ['unpack', '--checked', '--to', to], { input: input(), signal, link: options.link })
    } catch (error) {
      signal?.throwIfAborted()
      throw failure ?? error
    }
  })
  requireSameStream(done.report, packer, `copy ${hostPath} to ${guestPath}`)
  report(packer.counts.bytes, true)
  const { link } = done.ended
  return { ...mergedSkips(packer, done.report), link, durationMs: performance.now() - startedAt }
}

/** @throws as `Files.copyIn`; the folder must be there. */
export async function tarIn(
  findAgent: FindAgent,
  tar: AsyncIterable<Uint8Array>,
  guestFolder: string,
  { signal, link }: CopyOptions,
): Promise<CopyResult> {
  const startedAt = performance.now()
  const agent = await findAgent(signal)
  await requireTools(agent, signal)
  const there = await lookInGuest(agent, guestFolder, { followLinks: true, signal })
  if (there?.type !== 'directory')
    throw new BandSoxError('file-error', `cannot unpack a tar in ${guestFolder}: there is no such folder in the guest`)
  const to = `${guestFolder.replace(/\/+$/, '')}/.`
  const { report, ended } = await withSweep(agent, to, () =>
    runTool(agent, ['unpack', '--to', to], { input: tar, signal, link }),
  )
  return resultOf(report, ended.link, startedAt)
}

/** The guest's tool is killed with its connection, and then leaves what it has made under a name of its own. */
async function withSweep<T>(agent: Agent, to: string, work: () => Promise<T>): Promise<T> {
  try {
    return await work()
  } catch (error) {
    // When the guest cannot be reached for it, the next copy to the same folder does it.
    await runTool(agent, ['unpack', '--sweep', '--to', to], { signal: AbortSignal.timeout(SWEEP_TIMEOUT_MS) }).catch(
      () => undefined,
    )
    throw error
  }
}

export function resultOf(report: ToolReport, link: CopyResult['link'], startedAt: number): CopyResult {
  const { files, folders, links, bytes, skipped, skippedCount } = report
  return { files, folders, links, bytes, skipped, skippedCount, link, durationMs: performance.now() - startedAt }
}

function mergedSkips(packer: HostPacker, report: ToolReport) {
  const { result } = packer
  return {
    ...result,
    skipped: [...result.skipped, ...report.skipped].slice(0, 100),
    skippedCount: result.skippedCount + report.skippedCount,
  }
}

interface Source {
  path: string
  name: string
  isFolder: boolean
  contentOnly: boolean
}

async function sourceOf(hostPath: string): Promise<Source> {
  if (hostPath === '' || hostPath.includes('\0'))
    throw new BandSoxError('bad-request', `${JSON.stringify(hostPath)} is not a path of this host`)
  const contentOnly = meansContent(hostPath)
  const isBehindLink = contentOnly || hostPath.endsWith('/')
  const resolved = path.resolve(hostPath)
  try {
    const stats = isBehindLink ? await stat(`${resolved}/.`) : await lstat(resolved)
    // A link that was named with a slash behind it stands for its folder.
    return {
      path: isBehindLink ? `${resolved === '/' ? '' : resolved}/.` : resolved,
      name: path.basename(resolved),
      isFolder: stats.isDirectory(),
      contentOnly: contentOnly || resolved === '/',
    }
  } catch (error) {
    throw hostError(error, `read ${hostPath}`)
  }
}

/** Where the root of the stream shall be in the guest: the rules of cp -r and docker cp. */
async function targetOf(
  agent: Agent,
  source: Source,
  guestPath: string,
  signal: AbortSignal | undefined,
): Promise<string> {
  const trimmed = guestPath.replace(/(\/+\.?)+$/, '')
  const there = await lookInGuest(agent, guestPath.replace(/\/+$/, '') || '/', { followLinks: true, signal })
  if (there?.type === 'directory') return source.contentOnly ? `${trimmed}/.` : `${trimmed}/${source.name}`
  const mustBeFolder = guestPath !== trimmed
  if (there !== undefined && (source.isFolder || mustBeFolder))
    throw new BandSoxError('file-error', `cannot copy to ${guestPath}: it is no folder in the guest`)
  if (there === undefined && mustBeFolder && !source.isFolder)
    throw new BandSoxError('file-not-found', `cannot copy a file to ${guestPath}: there is no such folder in the guest`)
  return trimmed
}
