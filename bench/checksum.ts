/** How quick each checksum is at both ends: what the protocol's default is chosen by. */
import { createHash } from 'node:crypto'
import { openBandSox } from 'bandsox'
import xxhash from 'xxhash-wasm'
import { guestProgram, uploadBenchGuest } from './bench-guest.js'
import { figure, type Report } from './report.js'
import { quantile } from './statistics.js'

const names = ['xxh64', 'md5', 'sha256'] as const
type Name = (typeof names)[number]
const BLOCK_BYTES = 65_536
const MEASURE_MS = 1_000
const RUNS = 3

export async function measureChecksum({ signal }: { signal: AbortSignal }): Promise<Report> {
  await using bandsox = await openBandSox()
  await using sandbox = await bandsox.create('bandsox/base')
  await uploadBenchGuest(sandbox)
  const guest: Record<Name, number[]> = { xxh64: [], md5: [], sha256: [] }
  const host: Record<Name, number[]> = { xxh64: [], md5: [], sha256: [] }
  for (let run = 0; run < RUNS; run++) {
    const { stdout } = await sandbox.exec([guestProgram, 'checksum'], { signal }).collect()
    const rates = JSON.parse(stdout) as Record<Name, number>
    for (const name of names) {
      guest[name].push(rates[name])
      host[name].push(await hostRate(name))
    }
  }
  const row = (name: Name) => [name, ...[guest, host].map((end) => figure(quantile(end[name], 0.5) / 1e6))]
  return {
    subject: 'checksum',
    method: `blocks of ${BLOCK_BYTES} bytes, median of ${RUNS} runs of a second; MB/s (10⁶ bytes)`,
    columns: ['', 'guest', 'host'],
    rows: names.map(row),
    verdicts: [],
    measurements: { guest, host },
  }
}

/** @returns Bytes per second. */
async function hostRate(name: Name): Promise<number> {
  const block = Buffer.alloc(BLOCK_BYTES, 7)
  const sum = name === 'xxh64' ? (await xxhash()).create64() : createHash(name)
  const started = performance.now()
  for (let bytes = 0; ; bytes += BLOCK_BYTES) {
    const ms = performance.now() - started
    if (ms >= MEASURE_MS) return bytes / (ms / 1000)
    sum.update(block)
  }
}
