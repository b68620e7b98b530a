/** Rates of upload and download through the library, beside a bare pump over the same vsock of the same machine. */
import path from 'node:path'
import { openBandSox } from 'bandsox'
import { pumpIn, pumpInPlain, pumpOut, pumpOutPlain } from './bare-pump.js'
import { guestFolder, startBenchGuest } from './bench-guest.js'
import { temporaryFolder, writeRandomFile } from './host-file.js'
import { figure, type Report, spread, type Verdict } from './report.js'
import { summarize } from './statistics.js'

const TARGET_RATIO = 0.9
/** Small ones vary more, and cost less. A first run that does not count matters little to the largest, and costs minutes. */
const sizes = [
  { name: '1 KiB', bytes: 1024, warmUp: 5, runs: 60 },
  { name: '1 MiB', bytes: 1024 ** 2, warmUp: 3, runs: 30 },
  { name: '64 MiB', bytes: 64 * 1024 ** 2, warmUp: 1, runs: 7 },
  { name: '1 GiB', bytes: 1024 ** 3, warmUp: 0, runs: 3 },
]
type Kind = 'bandsox' | 'bare' | 'plain'
/** Taken in turn, so that each comes as often behind each other, whose writing the disk may still be busy with. */
const orders: readonly (readonly Kind[])[] = [
  ['bandsox', 'bare', 'plain'],
  ['bare', 'bandsox', 'plain'],
  ['plain', 'bandsox', 'bare'],
  ['bandsox', 'plain', 'bare'],
  ['bare', 'plain', 'bandsox'],
  ['plain', 'bare', 'bandsox'],
]
const kinds = ['bandsox', 'bare', 'plain'] as const
type Work = Record<Kind, () => Promise<unknown>>

export async function measureTransfer({ quick, signal }: { quick: boolean; signal: AbortSignal }): Promise<Report> {
  await using bandsox = await openBandSox()
  await using sandbox = await bandsox.create('bandsox/base')
  await using guest = await startBenchGuest(sandbox)
  await using scratch = await temporaryFolder()
  const connection = await guest.connect()
  const inGuest = (name: string) => `${guestFolder}/${name}`
  const onHost = (name: string) => path.join(scratch.folder, name)
  const rows: string[][] = []
  const verdicts: Verdict[] = []
  const measurements: Record<string, Record<Kind, number[]>> = {}
  try {
    for (const { name, bytes, warmUp, runs } of sizes.slice(0, quick ? -1 : undefined)) {
      await writeRandomFile(onHost('source'), bytes)
      const directions: Record<string, Work> = {
        upload: {
          bandsox: () => sandbox.files.upload(onHost('source'), inGuest('bandsox')),
          bare: () => pumpIn(connection, onHost('source'), inGuest('bare'), bytes),
          plain: () => pumpInPlain(connection, bytes),
        },
        download: {
          bandsox: () => sandbox.files.download(inGuest('bandsox'), onHost('bandsox')),
          bare: () => pumpOut(connection, inGuest('bandsox'), onHost('bare'), bytes),
          plain: () => pumpOutPlain(connection, bytes),
        },
      }
      for (const [direction, work] of Object.entries(directions)) {
        console.error(`… ${direction} ${name}`)
        const seconds = await interleave(work, { warmUp, runs }, signal)
        measurements[`${direction} ${name}`] = seconds
        const rates = (kind: Kind) => summarize(seconds[kind].map((each) => bytes / each / 1e6))
        const ratio = summarize(seconds.bare).median / summarize(seconds.bandsox).median
        rows.push([`${direction} ${name}`, ...kinds.map((kind) => spread(rates(kind))), figure(ratio)])
        const target = { kind: 'at least', value: TARGET_RATIO } as const
        verdicts.push({ figure: `${direction} ${name} / bare pump`, value: ratio, unit: ' ×', target })
      }
      await sandbox.exec(['rm', '-f', inGuest('bandsox'), inGuest('bare')]).wait()
    }
  } finally {
    connection.close()
  }
  return {
    subject: 'transfer',
    method: 'interleaved in one sandbox; MB/s (10⁶ bytes), median (min–max)',
    columns: ['', 'bandsox', 'bare pump', 'plain pump', 'ratio'],
    rows,
    verdicts,
    measurements,
  }
}

/** @returns Seconds of each run that counts. The order changes from run to run. */
async function interleave(
  work: Work,
  { warmUp, runs }: { warmUp: number; runs: number },
  signal: AbortSignal,
): Promise<Record<Kind, number[]>> {
  const seconds: Record<Kind, number[]> = { bandsox: [], bare: [], plain: [] }
  for (let run = -warmUp; run < runs; run++) {
    for (const kind of orders[(run + warmUp) % orders.length] ?? kinds) {
      signal.throwIfAborted()
      const took = await secondsOf(work[kind])
      if (run >= 0) seconds[kind].push(took)
    }
  }
  return seconds
}

async function secondsOf(work: () => Promise<unknown>): Promise<number> {
  const started = performance.now()
  await work()
  return (performance.now() - started) / 1000
}
