/** What an idle sandbox keeps in memory on its host beside the VMM: the manager that holds it, and its shim. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { readRun } from './internals.js'
import { figure, type Report, spread } from './report.js'
import { summarize } from './statistics.js'

const QUICK_RUNS = 2
/** Until what the boot needed has been given back, as far as it ever is. */
const SETTLE_MS = 3_000
const TARGET_MIB = 8
const MIB_IN_KIB = 1024

/** What idle-program.ts says, one after the other. */
export type Word = { kind: 'open' } | { kind: 'idle'; directory: string }

interface Memory {
  rss: number
  /** Pages that others have too count in parts. */
  pss: number
  private: number
}
const subjects = ['manager, storage open', 'manager, one idle sandbox', 'shim', 'vsock daemon'] as const
type Subject = (typeof subjects)[number]

export async function measureIdle(options: { runs: number; quick: boolean; signal: AbortSignal }): Promise<Report> {
  const runs = options.quick ? Math.min(options.runs, QUICK_RUNS) : options.runs
  const found: Partial<Record<Subject, Memory>>[] = []
  for (let run = 0; run < runs; run++) found.push(await measureOnce(options.signal))
  const of = (subject: Subject, kind: keyof Memory) =>
    found.flatMap((each) => (each[subject] === undefined ? [] : [each[subject][kind]]))
  return {
    subject: 'idle',
    method: `a program that opens the storage, then makes one sandbox of bandsox/base and runs true in it, ${runs} times; ${SETTLE_MS / 1000} s later; MiB, median (min–max)`,
    columns: ['', 'resident', 'proportional', 'private'],
    rows: subjects
      .filter((subject) => of(subject, 'rss').length > 0)
      .map((subject) => [
        subject,
        ...(['rss', 'pss', 'private'] as const).map((kind) => spread(summarize(of(subject, kind)))),
      ]),
    verdicts: [
      {
        figure: 'the shim of an idle sandbox, resident, at most',
        value: Number(figure(Math.max(...of('shim', 'rss')))),
        unit: ' MiB',
        target: { kind: 'at most', value: TARGET_MIB },
      },
    ],
    measurements: found,
  }
}

async function measureOnce(signal: AbortSignal): Promise<Partial<Record<Subject, Memory>>> {
  const child = fork(fileURLToPath(new URL('idle-program.js', import.meta.url)))
  const ended = once(child, 'exit')
  const next = async () => {
    const [word] = (await Promise.race([
      once(child, 'message', { signal }),
      ended.then(([code]) => Promise.reject(new Error(`idle-program ended with ${code}`))),
    ])) as [Word]
    await delay(SETTLE_MS, undefined, { signal })
    return word
  }
  try {
    await next()
    const open = await memoryOf(child.pid)
    child.send('create')
    const word = await next()
    if (word.kind !== 'idle') throw new Error('idle-program said something else than it was asked')
    const { run } = await readRun(word.directory)
    return {
      'manager, storage open': open,
      'manager, one idle sandbox': await memoryOf(child.pid),
      shim: await memoryOf(run?.shim.pid),
      ...(run?.vsock !== undefined && { 'vsock daemon': await memoryOf(run.vsock.pid) }),
    }
  } finally {
    child.disconnect() // it removes its sandbox then, and ends
    await ended
  }
}

/** @see proc(5), /proc/PID/smaps_rollup */
async function memoryOf(pid: number | undefined): Promise<Memory> {
  const text = await readFile(`/proc/${pid}/smaps_rollup`, 'utf8')
  const mib = (field: string) => Number(new RegExp(`^${field}:\\s+(\\d+) kB$`, 'm').exec(text)?.[1]) / MIB_IN_KIB
  return { rss: mib('Rss'), pss: mib('Pss'), private: mib('Private_Clean') + mib('Private_Dirty') }
}
