/** Starts from templates and pools beside cold boots, forks, what clones take of the host's memory, and what a snapshot costs its sandbox. */
import { readFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import type { Sandbox } from 'bandsox'
import { LocalBandSox, readConfig, readRun } from './internals.js'
import { figure, type Report, spread } from './report.js'
import { measureSharedSaves, type SharedSave } from './shared-memory.js'
import { summarize } from './statistics.js'

const IMAGE = 'bandsox/base'
const KINDS = ['cold', 'template', 'vsock', 'pool'] as const
const POOL_SIZE = 3
const CHILDREN = 10
const SAVES = 5
const SETTLE_MS = 3_000
const MIB = 1024 ** 2
const KIB = 1024

interface Options {
  runs: number
  signal: AbortSignal
}

interface Start {
  /** Until the agent has answered for the first time. */
  helloMs: number
  /** Until it has been told who it is, and `create` returns. */
  createMs: number
  execMs: number
  stages: Record<string, number>
}

export async function* measureSnapshots(options: Options): AsyncGenerator<Report> {
  const { cliPath: _, ...config } = readConfig()
  // No process in the background: nothing is to run beside what is measured.
  await using bandsox = await LocalBandSox.open({ ...config, templates: true, warn: console.error })
  await bandsox.makeTemplate(IMAGE)
  yield await measureStarts(bandsox, options)
  yield await measureForks(bandsox, options)
  yield await measureClones(bandsox, options)
  yield await measureSaves(bandsox, options)
  yield await measureSharedMemory(options)
}

async function measureStarts(bandsox: LocalBandSox, { runs, signal }: Options): Promise<Report> {
  const starts: Record<(typeof KINDS)[number], Start[]> = { cold: [], template: [], vsock: [], pool: [] }
  const kinds = {
    cold: () => timed(bandsox, { cold: true }),
    template: () => timed(bandsox, {}),
    // Where vsock is a daemon's, the memory is copied for it; else it is there anyway.
    vsock: () => timed(bandsox, { vsock: 'on' }),
    async pool() {
      await bandsox.pools.set(IMAGE, { size: POOL_SIZE, waits: true, signal })
      await delay(SETTLE_MS) // what has just been made is not to be in the way
      const start = await timed(bandsox, {})
      await bandsox.pools.remove(IMAGE)
      return start
    },
  }
  for (const start of Object.values(kinds)) await start() // not counted: fills the page cache
  for (let run = 0; run < runs; run++) {
    for (const kind of KINDS) {
      signal.throwIfAborted()
      starts[kind].push(await kinds[kind]())
    }
  }
  const median = (kind: keyof typeof starts, value: (start: Start) => number) =>
    summarize(starts[kind].map(value)).median
  const exec = ({ execMs }: Start) => execMs
  const stages = [
    ...new Set(Object.values(starts).flatMap((list) => list.flatMap((start) => Object.keys(start.stages)))),
  ]
  const rowOf = (name: string, value: (start: Start) => number | undefined) => [
    name,
    ...KINDS.map((kind) => {
      const values = starts[kind].map(value).filter((each) => each !== undefined)
      return values.length === 0 ? '' : spread(summarize(values))
    }),
  ]
  return {
    subject: 'starts',
    method: `create of ${IMAGE}, 256 MiB, ${runs} of each, interleaved; ms, median (min–max)`,
    columns: ['stage', 'cold', 'template', 'template, --vsock on', 'pool'],
    rows: [
      ...stages.map((stage) => rowOf(stage, (start) => start.stages[stage])),
      rowOf('to hello', ({ helloMs }) => helloMs),
      rowOf('until create returns', ({ createMs }) => createMs),
      rowOf('to first exec', exec),
    ],
    verdicts: [
      target(
        'template to hello',
        median('template', ({ helloMs }) => helloMs),
        ' ms',
        'at most',
        120,
      ),
      target('template to first exec', median('template', exec), ' ms', 'at most', 280),
      target('cold / template, to first exec', median('cold', exec) / median('template', exec), ' ×', 'at least', 5),
      target('pool to first exec', median('pool', exec), ' ms', 'at most', 60),
    ],
    measurements: starts,
  }
}

async function timed(bandsox: LocalBandSox, options: { cold?: boolean; vsock?: 'on' }): Promise<Start> {
  const started = performance.now()
  await using sandbox = await bandsox.create(IMAGE, options)
  const createMs = performance.now() - started
  await sandbox.exec(['true']).wait()
  const execMs = performance.now() - started
  const { timings: stages } = await sandbox.info()
  return { helloMs: createMs - behindHello(stages), createMs, execMs, stages }
}

/** The stages of a start that follow the agent's first answer. */
function behindHello(stages: Record<string, number>): number {
  const ours = Object.entries(stages).filter(([stage]) => !stage.startsWith('guest.'))
  const hello = ours.findIndex(([stage]) => stage === 'hello')
  return ours.slice(hello + 1).reduce((sum, [, ms]) => sum + ms, 0)
}

async function measureForks(bandsox: LocalBandSox, { runs, signal }: Options): Promise<Report> {
  await using parent = await bandsox.create(IMAGE)
  await parent.exec(['true']).wait()
  const forks: { totalMs: number; pauseMs: number }[] = []
  for (let run = 0; run < runs; run++) {
    signal.throwIfAborted()
    const pauses = watchPauses(parent)
    const started = performance.now()
    const children = await parent.fork({ count: CHILDREN, signal })
    const totalMs = performance.now() - started
    forks.push({ totalMs, pauseMs: await pauses.end() })
    await removeAll(children)
  }
  const [totals, pauses] = [forks.map(({ totalMs }) => totalMs), forks.map(({ pauseMs }) => pauseMs)].map(summarize)
  if (totals === undefined || pauses === undefined) throw new Error('nothing was measured')
  return {
    subject: 'fork',
    method: `${CHILDREN} children of a running ${IMAGE} of 256 MiB, until all have answered, ${runs} times; ms, median (min–max)`,
    columns: ['', 'ms'],
    rows: [
      [`${CHILDREN} children`, spread(totals)],
      ['the parent answered nothing for', spread(pauses)],
    ],
    verdicts: [target(`fork of ${CHILDREN} to hello`, totals.median, ' ms', 'at most', 2_500)],
    measurements: forks,
  }
}

/** The longest time between two lines of a command that writes one every 10 ms. */
function watchPauses(sandbox: Sandbox): { end: () => Promise<number> } {
  const job = sandbox.exec('while :; do echo; usleep 10000; done')
  let longest = 0
  const watching = (async () => {
    let before = performance.now()
    for await (const _ of job.output) {
      longest = Math.max(longest, performance.now() - before)
      before = performance.now()
    }
  })()
  watching.catch(() => undefined) // told at the end
  return {
    async end() {
      job.kill('SIGKILL')
      await watching
      return longest
    },
  }
}

async function measureClones(bandsox: LocalBandSox, { signal }: Options): Promise<Report> {
  const clones: Sandbox[] = []
  const before = await availableMib()
  try {
    for (let index = 0; index < CHILDREN; index++) clones.push(await bandsox.create(IMAGE, { signal }))
    await delay(SETTLE_MS, undefined, { signal })
    const shares = await Promise.all(clones.map(shareOf))
    const [vmm, shim] = [shares.map((each) => each.vmm), shares.map((each) => each.shim)].map(summarize)
    const both = summarize(shares.map((each) => each.vmm + each.shim))
    const taken = (before - (await availableMib())) / CHILDREN
    if (vmm === undefined || shim === undefined) throw new Error('nothing was measured')
    return {
      subject: 'clones',
      method: `${CHILDREN} idle sandboxes of 256 MiB from one template; MiB each, proportional share (PSS), median (min–max)`,
      columns: ['', 'MiB'],
      rows: [
        ['VMM', spread(vmm)],
        ['shim', spread(shim)],
        ['both', spread(both)],
        ["less of the host's available memory, each", figure(taken)],
      ],
      verdicts: [target('VMM and shim of an idle clone', both.median, ' MiB', 'at most', 40)],
      measurements: { shares, taken },
    }
  } finally {
    await removeAll(clones)
  }
}

async function shareOf(sandbox: Sandbox): Promise<{ vmm: number; shim: number }> {
  const { run } = await readRun((await sandbox.info()).directory)
  if (run === undefined) throw new Error(`${sandbox.id} does not run`)
  return { vmm: await pssMib(run.vmm.pid), shim: await pssMib(run.shim.pid) }
}

async function pssMib(pid: number): Promise<number> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8')
  return (Number(/^Pss:\s+(\d+)/m.exec(text)?.[1]) * KIB) / MIB
}

async function availableMib(): Promise<number> {
  return (Number(/^MemAvailable:\s+(\d+)/m.exec(await readFile('/proc/meminfo', 'utf8'))?.[1]) * KIB) / MIB
}

async function measureSaves(bandsox: LocalBandSox, { signal }: Options): Promise<Report> {
  const rows: string[][] = []
  const measurements: unknown[] = []
  for (const memoryMib of [256, 512]) {
    await using sandbox = await bandsox.create(IMAGE, { memoryMib, cold: true, signal })
    // As a guest that has done something: 50 MiB of files written, which it keeps in memory as well.
    for (const use of ['fresh', 'used'] as const) {
      if (use === 'used') await sandbox.exec('dd if=/dev/urandom of=/root/file bs=1M count=50').wait()
      const saves: { pauseMs: number; totalMs: number; memory: number; disk: number }[] = []
      for (let save = 0; save < SAVES; save++) {
        signal.throwIfAborted()
        const started = performance.now()
        const { id, pauseMs, bytes } = await sandbox.snapshot({ signal })
        const totalMs = performance.now() - started
        saves.push({ pauseMs, totalMs, memory: bytes.memory / MIB, disk: bytes.disk / MIB })
        await bandsox.snapshots.delete(id)
      }
      measurements.push({ memoryMib, use, saves })
      const column = (value: (save: (typeof saves)[number]) => number) => spread(summarize(saves.map(value)))
      rows.push([
        `${memoryMib} MiB, ${use}`,
        ...[column((save) => save.pauseMs), column((save) => save.totalMs)],
        ...[column((save) => save.memory), column((save) => save.disk)],
      ])
    }
  }
  return {
    subject: 'saves',
    method: `snapshots of a sandbox that was booted, ${SAVES} of each, fresh and with 50 MiB written; median (min–max)`,
    columns: ['', 'pause ms', 'until listed ms', 'memory MiB', 'disk MiB'],
    rows,
    verdicts: [],
    measurements,
  }
}

async function measureSharedMemory({ signal }: Options): Promise<Report> {
  const rows: string[][] = []
  const measurements: unknown[] = []
  for (const memoryMib of [256, 512]) {
    signal.throwIfAborted()
    const saves = await measureSharedSaves(memoryMib, SAVES)
    measurements.push({ memoryMib, saves })
    const column = (value: (save: SharedSave) => number) => spread(summarize(saves.map(value)))
    rows.push([
      `${memoryMib} MiB, fresh`,
      ...[column(({ stateMs }) => stateMs), column(({ copyMs }) => copyMs)],
      ...[column(({ stateMs, copyMs }) => stateMs + copyMs), column(({ copiedBytes }) => copiedBytes / MIB)],
    ])
  }
  return {
    subject: 'saves, the other way',
    method: `a parent whose memory lies in a shared file of its own: its state without memory, then a sparse copy of the file, ${SAVES} of each; median (min–max)`,
    columns: ['', 'state ms', 'copy ms', 'both ms', 'memory MiB'],
    rows,
    verdicts: [],
    measurements,
  }
}

async function removeAll(sandboxes: readonly Sandbox[]): Promise<void> {
  await Promise.all(sandboxes.map((sandbox) => sandbox.delete({ force: true })))
}

const target = (figureName: string, value: number, unit: string, kind: 'at most' | 'at least', bound: number) => ({
  ...{ figure: figureName, value, unit },
  target: { kind, value: bound },
})
