/** How far apart many transfers at once over one link are, when the first of them has ended. */
import type { LinkKind } from '@bandsox/sdk'
import { bytesSource, download, upload } from '../internals.js'
import { type Report, spread, type Verdict } from '../report.js'
import { summarize } from '../statistics.js'
import { type Host, type WatchedAgent, watchedSandbox } from './watched-agent.js'

const RUNS = 3
const QUICK_RUNS = 1
const MIB = 1024 ** 2
const TARGET_RATIO = 3
const MEMORY_MIB = 1024

/** Files that are not much larger than a stream's window would measure who began first. */
const cases = [
  { kind: 'vsock', streams: 64, sizeBytes: 4 * MIB },
  { kind: 'serial', streams: 16, sizeBytes: 8 * MIB },
] as const satisfies { kind: LinkKind; streams: number; sizeBytes: number }[]
const FILE = '/bench-file'

export async function measureFairness(
  host: Host,
  { quick, signal }: { quick: boolean; signal: AbortSignal },
): Promise<Report> {
  const rows: string[][] = []
  const verdicts: Verdict[] = []
  const measurements: Record<string, { ratio: number; seconds: number; bytes: number[] }[]> = {}
  await using watched = await watchedSandbox(host, { memoryMib: MEMORY_MIB })
  for (const { kind, streams, sizeBytes } of cases) {
    const content = Buffer.alloc(sizeBytes, 'bandsox')
    await watched.sandbox.files.write(FILE, content)
    for (const [what, move] of [
      ['downloads', (agent: WatchedAgent) => downloads(agent, streams)],
      ['uploads', (agent: WatchedAgent) => uploads(agent, content, streams)],
    ] as const) {
      const name = `${streams} ${what} over ${kind}`
      console.error(`… ${name}`)
      const runs: { ratio: number; seconds: number; bytes: number[] }[] = []
      for (let run = 0; run < (quick ? QUICK_RUNS : RUNS); run++) {
        signal.throwIfAborted()
        const agent = watched.agentOver(kind)
        const started = performance.now()
        try {
          const bytes = await move(agent)
          const seconds = (performance.now() - started) / 1000
          if (bytes.length !== streams) throw new Error(`${bytes.length} connections instead of ${streams}`)
          runs.push({ ratio: Math.max(...bytes) / Math.min(...bytes), seconds, bytes })
        } finally {
          agent.close()
        }
      }
      measurements[name] = runs
      const ratios = summarize(runs.map(({ ratio }) => ratio))
      const rates = summarize(runs.map(({ seconds }) => (streams * sizeBytes) / seconds / 1e6))
      rows.push([name, `${sizeBytes / MIB} MiB`, spread(ratios), spread(rates), String(runs.length)])
      const target = { kind: 'at most', value: TARGET_RATIO } as const
      verdicts.push({ figure: `${name}: most / least, the worst run`, value: ratios.max, unit: ' ×', target })
    }
  }
  return {
    subject: 'link: fairness',
    method:
      'bytes of the stream with most / with least when the first has ended; rate of all together in MB/s; median (min–max)',
    columns: ['', 'each', 'most / least', 'MB/s', 'runs'],
    rows,
    verdicts,
    measurements,
  }
}

/** @returns Bytes that each connection had brought when the first file was there. */
async function downloads(agent: WatchedAgent, streams: number): Promise<number[]> {
  let snapshot: number[] | undefined
  const sink = {
    async begin() {
      // Nothing to prepare: what comes is dropped.
    },
    async write() {
      // Dropped.
    },
    async commit() {
      snapshot ??= agent.opened.map(({ socket }) => socket.bytesRead)
    },
  }
  await Promise.all(Array.from({ length: streams }, () => download(agent, FILE, sink)))
  return snapshot ?? []
}

/** @returns Bytes of each that the kernel had taken when the first file was there. */
async function uploads(agent: WatchedAgent, content: Buffer, streams: number): Promise<number[]> {
  let snapshot: number[] | undefined
  const one = async (index: number) => {
    await upload(agent, `${FILE}-${index}`, bytesSource(content))
    snapshot ??= agent.opened.map(({ socket }) => socket.bytesWritten - socket.writableLength)
  }
  await Promise.all(Array.from({ length: streams }, (_, index) => one(index)))
  return snapshot ?? []
}
