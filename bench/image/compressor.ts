/** How quickly each compression of a disk is made, how large it is, and how quickly a guest reads it: what BandSox's own is chosen by. */
import { chmod, readdir, rm, stat } from 'node:fs/promises'
import path from 'node:path'
import { openBandSox } from 'bandsox'
import { type BareBoot, prepareBareBoot } from '../bare-machine.js'
import { figure, type Report, spread } from '../report.js'
import { summarize } from '../statistics.js'
import { benchImage } from './bench-image.js'
import { scratchFolder } from './scratch.js'
import { missingTools, push, runTool, startRegistry } from './test-support.js'

const MAX_FAILURES = 3

interface Variant {
  name: string
  /** Of mksquashfs. */
  options: readonly string[]
  /** Takes most of a minute. */
  isSlow?: boolean
}

const lz4 = ['-comp', 'lz4']
const zstd = (level: number) => ['-comp', 'zstd', '-Xcompression-level', String(level)]
const variants: readonly Variant[] = [
  { name: 'uncompressed 128K', options: ['-noI', '-noD', '-noF', '-noX'] },
  { name: 'lz4 128K', options: lz4 },
  { name: 'lz4 256K', options: [...lz4, '-b', '256K'] },
  { name: 'lz4 1M', options: [...lz4, '-b', '1M'] },
  { name: 'lz4 -Xhc 128K', options: [...lz4, '-Xhc'], isSlow: true },
  { name: 'zstd 1 128K', options: zstd(1) },
  { name: 'zstd 1 256K', options: [...zstd(1), '-b', '256K'] },
  { name: 'zstd 1 1M', options: [...zstd(1), '-b', '1M'] },
  { name: 'zstd 3 128K', options: zstd(3) },
  { name: 'zstd 15 (its default) 128K', options: zstd(15), isSlow: true },
  { name: 'gzip 128K', options: ['-comp', 'gzip'], isSlow: true },
]
/** What a guest is asked, in words of bench-guest; each begins with nothing of the disk in memory. */
const questions = {
  'large files': 'read-all /usr/bin',
  'small files': 'read-all /usr/lib/python3',
  'single pages': 'read-pages /usr/bin 500',
  'start of Python': `spawn-cold /usr/bin/python3 -I -c ${['asyncio', 'email.message', 'http.client', 'json', 'logging']
    .map((name) => `__import__('${name}')`)
    .join(';')}`,
}
type Question = keyof typeof questions

interface Figures {
  bytes: number
  buildSeconds: number[]
  guestSeconds: Record<Question, number[]>
}

/** @param options `only`: names of variants; none: all, but for the slow ones with `quick`. */
export async function measureCompressor({
  runs,
  quick,
  only,
  signal,
}: {
  runs: number
  quick: boolean
  only: readonly string[]
  signal: AbortSignal
}): Promise<Report> {
  const unknown = only.find((name) => !variants.some((variant) => variant.name === name))
  if (unknown !== undefined) {
    throw new Error(`there is no compressor ${unknown}, but ${variants.map(({ name }) => name).join(', ')}`)
  }
  const missing = missingTools()
  if (missing !== false) throw new Error(missing)
  await using scratch = await scratchFolder()
  const tar = path.join(scratch.folder, 'image.tar')
  await writeImageTar(tar, scratch.folder, signal)
  await using bareBoot = await prepareBareBoot()
  const isChosen = ({ name, isSlow }: Variant) => (only.length > 0 ? only.includes(name) : !(quick && isSlow))
  const chosen = variants.filter(isChosen)
  const all = new Map<string, Figures>()
  const diskOf = (name: string) => path.join(scratch.folder, `${name.replaceAll(' ', '-')}.squashfs`)
  for (let run = 0; run < runs; run++) {
    for (const { name, options, isSlow } of chosen) {
      signal.throwIfAborted()
      console.error(`… ${name}, ${run + 1} of ${runs}`)
      const disk = diskOf(name)
      const figures = all.get(name) ?? { bytes: 0, buildSeconds: [], guestSeconds: emptyAnswers() }
      all.set(name, figures)
      if (run === 0 || !isSlow) {
        await rm(disk, { force: true })
        figures.buildSeconds.push(await build(tar, disk, options))
        figures.bytes = (await stat(disk)).size
      }
      const answers = await askGuest(bareBoot, disk)
      for (const question of Object.keys(questions) as Question[]) {
        figures.guestSeconds[question].push(answers[question])
      }
    }
  }
  return reportOn(all, runs)
}

/** A machine that ends in the middle, as boot.ts has them too, is told of, and another one is asked. */
async function askGuest(bareBoot: BareBoot, disk: string): Promise<Record<Question, number>> {
  for (let failures = 0; ; ) {
    let asked = 'start'
    try {
      await using machine = await bareBoot.start(disk)
      const answers: Partial<Record<Question, number>> = {}
      for (const question of Object.keys(questions) as Question[]) {
        asked = question
        answers[question] = Number(await machine.connection.ask(questions[question])) / 1e9
      }
      return answers as Record<Question, number>
    } catch (error) {
      if (++failures === MAX_FAILURES) throw error
      console.error(`! ${asked}: ${error instanceof Error ? error.message : error}`)
    }
  }
}

const emptyAnswers = (): Record<Question, number[]> => ({
  'large files': [],
  'small files': [],
  'single pages': [],
  'start of Python': [],
})

/** The bench image's files as BandSox's disk has them, which other compressions are then made of. */
async function writeImageTar(tar: string, folder: string, signal: AbortSignal): Promise<void> {
  const image = await benchImage()
  await using registry = await startRegistry()
  const storage = path.join(folder, 'storage')
  await using bandsox = await openBandSox({ storage })
  await bandsox.images.pull(await push(image, registry), { signal })
  const disks = path.join(storage, 'images/disks')
  const [key = ''] = await readdir(disks)
  const tree = path.join(folder, 'tree')
  await runTool(['unsquashfs', '-quiet', '-no-progress', '-dest', tree, path.join(disks, key, 'rootfs.squashfs')])
  await runTool(['tar', '--create', '--file', tar, '--numeric-owner', '--sort=name', '--directory', tree, 'rootfs'])
  for (const done of [storage, tree]) await rm(done, { recursive: true })
}

/** By mksquashfs, which reads tars as sqfstar does: sqfstar 4.5 knows no options of compressors that have a value. */
async function build(tar: string, disk: string, options: readonly string[]): Promise<number> {
  const plain = ['-tar', '-quiet', '-no-progress', '-noappend', '-mem', '256M', '-mkfs-time', '0']
  const started = performance.now()
  await runTool(['sh', '-c', 'exec mksquashfs - "$@" <"$0"', tar, disk, ...plain, ...options])
  const seconds = (performance.now() - started) / 1000
  await chmod(disk, 0o444) // for the user that the machine runs as
  return seconds
}

function reportOn(all: ReadonlyMap<string, Figures>, runs: number): Report {
  const names = Object.keys(questions) as Question[]
  return {
    subject: 'compressor',
    method: `${runs} rounds of all; seconds, median (min–max); read in a bare machine whose caches are dropped before each`,
    columns: ['', 'MB', 'built', ...names],
    rows: [...all].map(([name, { bytes, buildSeconds, guestSeconds }]) => [
      name,
      figure(bytes / 1e6),
      spread(summarize(buildSeconds)),
      ...names.map((question) => spread(summarize(guestSeconds[question]))),
    ]),
    verdicts: [],
    measurements: Object.fromEntries(all),
  }
}
