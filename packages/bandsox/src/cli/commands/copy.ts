/** `cp`: files and folders into a sandbox, and out of it. */
import { once } from 'node:events'
import { BandSoxError, type CopyOptions, type CopyResult, type LinkKind, printableLine } from '@bandsox/sdk'
import type { Command } from 'commander'
import type { LocalFiles } from '../../sandbox/local-files.js'
import { standardInput } from '../attach.js'
import { type Context, contextOf } from '../context.js'
import { linkOption } from '../option-parsers.js'
import { progressLine } from '../progress.js'
import { counted, sizeText } from '../text.js'

interface CopyCommandOptions {
  include?: string[]
  exclude?: string[]
  quiet?: boolean
  link?: LinkKind
}

/** One side of a copy. */
type Place = { kind: 'host'; path: string } | { kind: 'guest'; vm: string; path: string } | { kind: 'stream' }

const repeated = (text: string, before: string[] = []): string[] => [...before, text]

export function addCopy(program: Command): void {
  program
    .command('cp')
    .argument('<files...>', 'SRC… DST: paths of this host, or VM:PATH; - for a tar on standard input or output')
    .option('--include <pattern>', 'take only what matches, such as *.py; may be repeated', repeated)
    .option('--exclude <pattern>', 'leave out what matches, such as node_modules/; may be repeated', repeated)
    .option('-q, --quiet', 'print nothing but errors')
    .addOption(linkOption())
    .description('copy files and folders into a sandbox or out of it, as cp -r does')
    .addHelpText(
      'after',
      `
One side is VM:PATH with an absolute path, the other one of this host; write ./a:b for a name with a colon.
A folder that is there gets the copy in it; else the copy gets the name. SRC/. is what is in SRC.
Patterns are those of a .gitignore without !: see docs/files.md.`,
    )
    .action(async (words: string[], options: CopyCommandOptions, command: Command) => {
      const { sources, to, vm } = plan(words, options)
      const context = contextOf(command)
      const sandbox = await (await context.open()).get(vm)
      const files = sandbox.files as LocalFiles
      // Of several, each goes into the folder, whose name must not become that of the first one.
      const aim = sources.length > 1 && to.kind !== 'stream' ? { ...to, path: `${to.path.replace(/\/+$/, '')}/` } : to
      const results: CopyResult[] = []
      for (const from of sources) results.push(await copyOne(context, files, from, aim, options))
      if (to.kind !== 'stream') report(context, sum(results), words.at(-1) ?? '', options)
    })
}

/** All that can be known to be wrong before anything is opened. @throws `bad-request`. */
function plan(words: readonly string[], options: CopyCommandOptions): { sources: Place[]; to: Place; vm: string } {
  const places = words.map(placeOf)
  const to = places.at(-1)
  const sources = places.slice(0, -1)
  if (to === undefined || sources.length === 0)
    throw new BandSoxError('bad-request', 'cannot copy: SRC and DST are needed')
  const vms = new Set([...sources, to].map((place) => (place.kind === 'guest' ? place.vm : undefined)))
  const isIn = to.kind === 'guest' && sources.every(({ kind }) => kind !== 'guest')
  const isOut = to.kind !== 'guest' && sources.every(({ kind }) => kind === 'guest')
  if (!isIn && !isOut)
    throw new BandSoxError('bad-request', 'cannot copy: one side must be VM:PATH, and the other a path of this host')
  if (vms.size > 2) throw new BandSoxError('bad-request', 'cannot copy: all sources must be in one sandbox')
  const hasStream = [...sources, to].some(({ kind }) => kind === 'stream')
  if (hasStream && sources.length > 1) throw new BandSoxError('bad-request', 'cannot copy: - stands alone on its side')
  if (hasStream && isIn && (options.include !== undefined || options.exclude !== undefined))
    throw new BandSoxError(
      'bad-request',
      'cannot choose by patterns of a tar that comes in: leave --include and --exclude out',
    )
  const vm = [...vms].find((name) => name !== undefined) ?? ''
  return { sources, to, vm }
}

/** `VM:PATH` where nothing before the colon is a path. @throws `bad-request`. */
function placeOf(word: string): Place {
  if (word === '-') return { kind: 'stream' }
  const colon = word.indexOf(':')
  if (colon === -1 || word.slice(0, colon).includes('/') || word.startsWith('.')) {
    if (word === '') throw new BandSoxError('bad-request', 'cannot copy: a path is empty')
    return { kind: 'host', path: word }
  }
  const [vm, path] = [word.slice(0, colon), word.slice(colon + 1)]
  if (vm === '') throw new BandSoxError('bad-request', `${JSON.stringify(word)} names no sandbox before its colon`)
  if (!path.startsWith('/'))
    throw new BandSoxError('bad-request', `${JSON.stringify(word)} names no absolute path in the guest`, {
      hint: `write ${vm}:/${path}, or ./${word} for a file of this host`,
    })
  return { kind: 'guest', vm, path }
}

async function copyOne(
  context: Context,
  files: LocalFiles,
  from: Place,
  to: Place,
  { include, exclude, quiet, link }: CopyCommandOptions,
): Promise<CopyResult> {
  const label = from.kind === 'stream' ? 'a tar' : from.path
  const line = quiet === true ? undefined : progressLine(label)
  const options: CopyOptions = {
    ...(include !== undefined && { include }),
    ...(link !== undefined && { link }),
    ...(exclude !== undefined && { exclude }),
    ...(line !== undefined && { onProgress: line.onProgress }),
    signal: context.signal,
  }
  try {
    if (to.kind === 'guest')
      return from.kind === 'host'
        ? await files.copyIn(from.path, to.path, options)
        : await files.tarIn(standardInput(), to.path, options)
    if (from.kind !== 'guest') throw new BandSoxError('internal', 'a copy has no side in a sandbox')
    return to.kind === 'host'
      ? await files.copyOut(from.path, to.path, options)
      : await files.tarOut(from.path, writeOut, options)
  } finally {
    line?.clear()
  }
}

async function writeOut(data: Uint8Array): Promise<void> {
  if (!process.stdout.write(data)) await once(process.stdout, 'drain')
}

function sum(results: readonly CopyResult[]): CopyResult {
  return results.reduce((all, each) => ({
    files: all.files + each.files,
    folders: all.folders + each.folders,
    links: all.links + each.links,
    bytes: all.bytes + each.bytes,
    link: each.link,
    durationMs: all.durationMs + each.durationMs,
    skipped: [...all.skipped, ...each.skipped],
    skippedCount: all.skippedCount + each.skippedCount,
  }))
}

function report(context: Context, result: CopyResult, destination: string, { quiet }: CopyCommandOptions): void {
  const { files, folders, links, bytes, link, skipped, skippedCount } = result
  if (!context.isJson) {
    for (const { path, reason } of skipped)
      process.stderr.write(`not copied: ${printableLine(path)}: ${printableLine(reason)}\n`)
    if (skippedCount > skipped.length) process.stderr.write(`not copied: ${skippedCount - skipped.length} more\n`)
  }
  if (quiet === true) return
  const parts = [counted(files, 'file'), counted(folders, 'folder'), ...(links > 0 ? [counted(links, 'link')] : [])]
  context.print(`Copied ${parts.join(', ')}, ${sizeText(bytes)} to ${destination} via ${link}`, {
    ...result,
    destination,
  })
}
