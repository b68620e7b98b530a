/** How long `sandbox.exec(['true'])` takes, beside what the machine itself needs for it: an echo and a process. */
import { openBandSox } from 'bandsox'
import { startBenchGuest } from './bench-guest.js'
import { figure, type Report } from './report.js'
import { quantile } from './statistics.js'

const COUNT = 200
const WARM_UP = 20
const ECHO_BYTES = 64
const TARGET_RATIO = 1.5
const PROGRAM = '/bin/true'

export async function measureExec({ signal }: { signal: AbortSignal }): Promise<Report> {
  await using bandsox = await openBandSox()
  await using sandbox = await bandsox.create('bandsox/base')
  await using guest = await startBenchGuest(sandbox)
  const echo = await guest.connect()
  const control = await guest.connect()
  await echo.write(Buffer.from('echo\n'))
  const block = Buffer.alloc(ECHO_BYTES, 1)
  /** Each gives milliseconds. */
  const kinds = {
    exec: () => timed(() => sandbox.exec(['true']).wait()),
    echo: () =>
      timed(async () => {
        await echo.write(block)
        await echo.bytes(ECHO_BYTES, () => undefined)
      }),
    /** Measured inside the guest. */
    spawn: async () => Number(await control.ask(`spawn ${PROGRAM}`)) / 1e6,
  }
  const all = { exec: [] as number[], echo: [] as number[], spawn: [] as number[] }
  try {
    for (let run = -WARM_UP; run < COUNT; run++) {
      signal.throwIfAborted()
      for (const kind of ['exec', 'echo', 'spawn'] as const) {
        const ms = await kinds[kind]()
        if (run >= 0) all[kind].push(ms)
      }
    }
  } finally {
    echo.close()
    control.close()
  }
  const bare = all.echo.map((ms, run) => ms + (all.spawn[run] ?? Number.NaN))
  const lists = {
    "sandbox.exec(['true'])": all.exec,
    'bare: echo + process': bare,
    'echo, 64 bytes': all.echo,
    'process, in the guest': all.spawn,
  }
  const ratio = (fraction: number) => quantile(all.exec, fraction) / quantile(bare, fraction)
  return {
    subject: 'exec',
    method: `${COUNT} of each after ${WARM_UP}, interleaved in one sandbox; ms`,
    columns: ['', 'p50', 'p95', 'min', 'max'],
    rows: [
      ...Object.entries(lists).map(([name, list]) => [
        name,
        ...[0.5, 0.95, 0, 1].map((fraction) => figure(quantile(list, fraction))),
      ]),
      ['ratio', ...[0.5, 0.95].map((fraction) => figure(ratio(fraction))), '', ''],
    ],
    verdicts: [0.5, 0.95].map((fraction) => ({
      figure: `exec p${fraction * 100} / bare echo and process`,
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
