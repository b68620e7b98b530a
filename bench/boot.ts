/** From the call of `create` to the agent's hello and to the end of a first command, beside a bare agent's boot. */
import { type BandSox, openBandSox } from 'bandsox'
import { type BareBoot, imageDisk, prepareBareBoot } from './bare-machine.js'
import { figure, type Report, spread } from './report.js'
import { summarize } from './statistics.js'

const IMAGE = 'bandsox/base'
const TARGET_RATIO = 1.35
const MAX_FAILURES = 3

interface Boot {
  helloMs: number
  execMs: number
  stages: Record<string, number>
}

export async function measureBoot({ runs, signal }: { runs: number; signal: AbortSignal }): Promise<Report> {
  await using bandsox = await openBandSox() // first: it takes no folder that others have begun to fill
  await using bareBoot = await prepareBareBoot()
  const disk = await imageDisk(IMAGE)
  const kinds = { bandsox: () => bootSandbox(bandsox), bare: () => bootBare(bareBoot, disk) }
  const boots: Record<keyof typeof kinds, Boot[]> = { bandsox: [], bare: [] }
  // Not counted: fills the page cache, and finds out what this host has.
  for (const boot of Object.values(kinds)) await boot()
  for (let run = 0; run < runs; run++) {
    // Who goes first changes, so that neither profits from what the other leaves behind.
    for (const kind of run % 2 === 0 ? (['bandsox', 'bare'] as const) : (['bare', 'bandsox'] as const)) {
      signal.throwIfAborted()
      boots[kind].push(await kinds[kind]())
    }
  }
  return reportOn(boots)
}

async function bootSandbox(bandsox: BandSox): Promise<Boot> {
  const started = performance.now()
  await using sandbox = await bandsox.create(IMAGE, { cold: true })
  const helloMs = performance.now() - started
  await sandbox.exec(['true']).wait()
  const execMs = performance.now() - started
  return { helloMs, execMs, stages: (await sandbox.info()).timings }
}

/** A boot that never answers, as the vsock daemon has it now and then, is told of and repeated: it would measure nothing. */
async function bootBare(bareBoot: BareBoot, disk: string): Promise<Boot> {
  for (let failures = 0; ; ) {
    try {
      return await bootBareOnce(bareBoot, disk)
    } catch (error) {
      if (++failures === MAX_FAILURES) throw error
      console.error(
        `a bare machine did not answer, and is started anew: ${error instanceof Error ? error.message : error}`,
      )
    }
  }
}

async function bootBareOnce(bareBoot: BareBoot, disk: string): Promise<Boot> {
  const started = performance.now()
  await using machine = await bareBoot.start(disk)
  const helloMs = performance.now() - started
  await machine.connection.ask('spawn /bin/true')
  return { helloMs, execMs: performance.now() - started, stages: machine.timings }
}

function reportOn(boots: Record<'bandsox' | 'bare', Boot[]>): Report {
  const figures = new Map<string, (boot: Boot) => number | undefined>()
  for (const stage of new Set([...boots.bandsox, ...boots.bare].flatMap(({ stages }) => Object.keys(stages)))) {
    figures.set(stage, ({ stages }) => stages[stage])
  }
  figures.set('to hello', ({ helloMs }) => helloMs)
  figures.set('to first exec', ({ execMs }) => execMs)
  const rows: string[][] = []
  const ratios: Record<string, number> = {}
  for (const [name, get] of figures) {
    const [ours, bare] = [boots.bandsox, boots.bare].map((list) => {
      const values = list.map(get).filter((value) => value !== undefined)
      return values.length === 0 ? undefined : summarize(values)
    })
    const ratio = ours !== undefined && bare !== undefined && bare.median > 0 ? ours.median / bare.median : undefined
    if (ratio !== undefined) ratios[name] = ratio
    rows.push([name, ours ? spread(ours) : '', bare ? spread(bare) : '', ratio === undefined ? '' : figure(ratio)])
  }
  return {
    subject: 'boot',
    method: `${IMAGE}, ${boots.bandsox.length} pairs of boots, interleaved; ms, median (min–max); "guest." counts from the kernel's start`,
    columns: ['stage', 'bandsox', 'bare agent', 'ratio'],
    rows,
    verdicts: ['to hello', 'to first exec'].map((name) => ({
      figure: `boot ${name} / bare agent`,
      value: ratios[name] ?? Number.NaN,
      unit: ' ×',
      target: { kind: 'at most', value: TARGET_RATIO },
    })),
    measurements: boots,
  }
}
