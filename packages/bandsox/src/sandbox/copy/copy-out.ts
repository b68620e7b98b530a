/** A file or folder of the guest, copied to this host. */
import { realpath } from 'node:fs/promises'
import path from 'node:path'
import { BandSoxError, type CopyOptions, type CopyResult } from '@bandsox/sdk'
import type { Agent, FindAgent } from '../../guest/agent.js'
import { createChecksum } from '../../guest/checksum.js'
import { progressReporter } from '../../guest/progress.js'
import { resultOf } from './copy-in.js'
import { isFolder } from './merge.js'
import { Selection } from './patterns.js'
import { requireSameStream } from './report.js'
import { lookInGuest, meansContent, patternWords, requireTools, runTool } from './tool.js'
import { HostUnpacker } from './unpack-host.js'

/** @throws as `Files.copyOut`. */
export async function copyOut(
  findAgent: FindAgent,
  guestPath: string,
  hostPath: string,
  options: CopyOptions,
): Promise<CopyResult> {
  const startedAt = performance.now()
  const { signal, include, exclude } = options
  new Selection(include, exclude) // refuses what the guest would refuse
  if (hostPath === '' || hostPath.includes('\0'))
    throw new BandSoxError('bad-request', `${JSON.stringify(hostPath)} is not a path of this host`)
  const agent = await findAgent(signal)
  await requireTools(agent, signal)
  const source = await sourceOf(agent, guestPath, signal)
  const target = await targetOf(source, hostPath)
  const report = progressReporter(options.onProgress, undefined)
  const unpacker = new HostUnpacker(target, report)
  try {
    await unpacker.begin()
    const done = await runTool(agent, ['pack', ...patternWords(include, exclude), source.path], {
      onOutput: (data) => unpacker.write(data),
      signal,
      link: options.link,
    })
    const own = { streamBytes: unpacker.streamBytes, xxh64: await unpacker.finish() }
    requireSameStream(done.report, own, `copy ${guestPath} to ${hostPath}`)
    signal?.throwIfAborted()
    await unpacker.commit()
    report(unpacker.counts.bytes, true)
    const skipped = [...done.report.skipped, ...unpacker.skipped].slice(0, 100)
    const skippedCount = done.report.skippedCount + unpacker.counts.skippedCount
    const { link } = done.ended
    return { ...unpacker.counts, skipped, skippedCount, link, durationMs: performance.now() - startedAt }
  } finally {
    await unpacker.discard()
  }
}

/** @throws as `Files.copyOut`. What was written before is a part of a tar. */
export async function tarOut(
  findAgent: FindAgent,
  guestPath: string,
  write: (data: Uint8Array) => Promise<void>,
  options: CopyOptions,
): Promise<CopyResult> {
  const startedAt = performance.now()
  const { signal, include, exclude } = options
  new Selection(include, exclude)
  const agent = await findAgent(signal)
  await requireTools(agent, signal)
  const source = await sourceOf(agent, guestPath, signal)
  const checksum = await createChecksum('xxh64')
  const report = progressReporter(options.onProgress, undefined)
  let streamBytes = 0
  const name = source.contentOnly ? '.' : source.name
  const { report: said, ended } = await runTool(
    agent,
    ['pack', ...patternWords(include, exclude), '--as', name, source.path],
    {
      onOutput: async (data) => {
        checksum.update(data)
        streamBytes += data.length
        report(streamBytes)
        await write(data)
      },
      signal,
      link: options.link,
    },
  )
  requireSameStream(said, { streamBytes, xxh64: checksum.digest() }, `copy ${guestPath}`)
  return resultOf(said, ended.link, startedAt)
}

interface Source {
  path: string
  name: string
  isFolder: boolean
  contentOnly: boolean
}

async function sourceOf(agent: Agent, guestPath: string, signal: AbortSignal | undefined): Promise<Source> {
  const contentOnly = meansContent(guestPath) || /^\/+$/.test(guestPath)
  const isBehindLink = contentOnly || guestPath.endsWith('/')
  const trimmed = path.posix.normalize(guestPath).replace(/(?<=.)\/$/, '')
  const found = await lookInGuest(agent, trimmed, { followLinks: isBehindLink, signal })
  if (found === undefined)
    throw new BandSoxError('file-not-found', `cannot copy ${guestPath}: there is no such file in the guest`)
  if (isBehindLink && found.type !== 'directory')
    throw new BandSoxError('file-error', `cannot copy ${guestPath}: it is no folder in the guest`)
  return {
    path: isBehindLink ? `${trimmed === '/' ? '' : trimmed}/.` : trimmed,
    name: path.posix.basename(trimmed),
    isFolder: found.type === 'directory',
    contentOnly,
  }
}

/** What the root of the stream shall be on this host: the rules of cp -r and docker cp. */
async function targetOf(source: Source, hostPath: string): Promise<string> {
  const resolved = path.resolve(hostPath)
  const there = await isFolder(resolved)
  if (there === true) return source.contentOnly ? await realpath(resolved) : path.join(resolved, source.name)
  const mustBeFolder = hostPath.endsWith('/') || meansContent(hostPath)
  if (there === false && (source.isFolder || mustBeFolder))
    throw new BandSoxError('file-error', `cannot copy to ${hostPath}: it is no folder of this host`)
  if (there === undefined && mustBeFolder && !source.isFolder)
    throw new BandSoxError('file-not-found', `cannot copy a file to ${hostPath}: there is no such folder on this host`)
  if ((await isFolder(path.dirname(resolved))) !== true)
    throw new BandSoxError('file-not-found', `cannot copy to ${hostPath}: there is no folder ${path.dirname(resolved)}`)
  return resolved
}
