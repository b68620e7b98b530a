/** How long `sandbox.exec(['true'])` takes over one link, beside an answer over the bare line and a process. */
import { figure, type Verdict } from '../report.js'
import { quantile } from '../statistics.js'
import type { Line } from './lines.js'

const COUNT = 200
const QUICK_COUNT = 50
const WARM_UP = 10
/** Of the request, with its newline; the answer has as many. */
const PING_BYTES = 64
const PROGRAM = '/bin/true'
/** As over vsock (exec.ts). */
const TARGET_RATIO = 1.5

const kinds = ['exec', 'ping', 'spawn'] as const

export const latencyColumns = ['', 'exec p50', 'p95', 'bare p50', 'p95', 'of it: echo p50', 'ratio p50', 'p95']

export interface Latency {
  row: string[]
  verdicts: Verdict[]
  measurements: Record<(typeof kinds)[number], number[]>
}

export async function measureLatency(
  { name, sandbox, bare }: Line,
  { quick, signal }: { quick: boolean; signal: AbortSignal },
): Promise<Latency> {
  console.error(`… ${name}: exec`)
  const ping = `ping ${'x'.repeat(PING_BYTES - 'ping \n'.length)}`
  /** Each gives milliseconds. */
  const works = {
    exec: () => timed(() => sandbox.exec(['true']).wait()),
    ping: () => timed(() => bare.ask(ping)),
    /** Measured inside the guest. */
    spawn: async () => Number(await bare.ask(`spawn ${PROGRAM}`)) / 1e6,
  }
  const all: Latency['measurements'] = { exec: [], ping: [], spawn: [] }
  for (let run = -WARM_UP; run < (quick ? QUICK_COUNT : COUNT); run++) {
    for (const kind of kinds) {
      signal.throwIfAborted()
      const ms = await works[kind]()
      if (run >= 0) all[kind].push(ms)
    }
  }
  const both = all.ping.map((ms, run) => ms + (all.spawn[run] ?? Number.NaN))
  const ratio = (fraction: number) => quantile(all.exec, fraction) / quantile(both, fraction)
  const figures = [
    quantile(all.exec, 0.5),
    quantile(all.exec, 0.95),
    quantile(both, 0.5),
    quantile(both, 0.95),
    quantile(all.ping, 0.5),
    ratio(0.5),
    ratio(0.95),
  ]
  return {
    row: [name, ...figures.map(figure)],
    verdicts: [0.5, 0.95].map((fraction) => ({
      figure: `${name}: exec p${fraction * 100} / bare echo and process`,
      value: ratio(fraction),
      unit: ' ×',
      target: { kind: 'at most', value: TARGET_RATIO },
    })),
    measurements: all,
  }
}

async function timed(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now()
  await work()
  return performance.now() - started
}
