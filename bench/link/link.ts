/** What the links to a guest carry, beside bare lines of the same kind, and how long an operation waits when one of them breaks. */
import { imageDisk, prepareBareBoot } from '../bare-machine.js'
import { temporaryFolder } from '../host-file.js'
import { openHost, readConfig } from '../internals.js'
import type { Report } from '../report.js'
import { measureBreak } from './break.js'
import { measureFairness } from './fairness.js'
import { latencyColumns, measureLatency } from './latency.js'
import { lineNames, withLine } from './lines.js'
import { measureRates, ratesColumns } from './rates.js'
import { measureReturn } from './return.js'

interface Options {
  quick: boolean
  /** Names of lines, and of what else is measured; none: everything. */
  only: readonly string[]
  signal: AbortSignal
}

export async function* measureLink(options: Options): AsyncGenerator<Report> {
  const isWanted = (name: string) => options.only.length === 0 || options.only.includes(name)
  const { storage, shimPath, searchPath } = readConfig()
  const host = await openHost({ storage, shimPath, searchPath, warn: (message) => console.error(`! ${message}`) })
  try {
    const lines = lineNames.filter(isWanted)
    if (lines.length > 0) yield* await measureLines(lines, options)
    if (isWanted('break')) yield await measureBreak(host, options)
    if (isWanted('return')) yield await measureReturn(options)
    if (isWanted('fairness')) yield await measureFairness(host, options)
  } finally {
    host.store.close()
  }
}

async function measureLines(
  lines: readonly (typeof lineNames)[number][],
  { quick, signal }: Options,
): Promise<readonly Report[]> {
  await using boot = await prepareBareBoot()
  const disk = await imageDisk('bandsox/base')
  await using temporary = await temporaryFolder()
  const scratch = temporary.folder
  const parts = []
  for (const name of lines) {
    parts.push(
      await withLine(name, { scratch, boot, disk }, async (line) => ({
        name,
        rates: await measureRates(line, { scratch, quick, signal }),
        latency: await measureLatency(line, { quick, signal }),
      })),
    )
  }
  return [
    {
      subject: 'link: rates',
      method:
        'file: written, synced and compared by both sides; memory: no disk; in turns; MB/s (10⁶ bytes), median (min–max)',
      columns: ratesColumns,
      rows: parts.flatMap(({ rates }) => rates.rows),
      verdicts: parts.flatMap(({ rates }) => rates.verdicts),
      measurements: Object.assign({}, ...parts.map(({ rates }) => rates.measurements)),
    },
    {
      subject: 'link: exec',
      method: "sandbox.exec(['true']), beside an echo of 64 bytes over the bare line and a process in its guest; ms",
      columns: latencyColumns,
      rows: parts.map(({ latency }) => latency.row),
      verdicts: parts.flatMap(({ latency }) => latency.verdicts),
      measurements: Object.fromEntries(parts.map(({ name, latency }) => [name, latency.measurements])),
    },
  ]
}
