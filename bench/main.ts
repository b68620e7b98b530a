/** Measures what was asked for, prints a table for each subject, and writes a JSON file on request. */
import { writeFile } from 'node:fs/promises'
import { cpus } from 'node:os'
import { parseArgs } from 'node:util'
import { measureBoot } from './boot.js'
import { measureChecksum } from './checksum.js'
import { measureExec } from './exec.js'
import { measureIdle } from './idle.js'
import { measureCompressor } from './image/compressor.js'
import { measureImage } from './image/image.js'
import { measureLink } from './link/link.js'
import { measureList } from './list.js'
import { measureLoad } from './load.js'
import { measureManager } from './manager.js'
import { measureMemory } from './memory.js'
import { formatReport, isMet, type Report } from './report.js'
import { measureRestore } from './restore.js'
import { measureSnapshots } from './snapshots.js'
import { measureTransfer } from './transfer.js'

const usage = `usage: npm run bench -- [SUBJECT…] [options]

Subjects: boot exec transfer memory checksum (all of these by default), manager load restore list idle snapshots, image compressor, link

  --runs N     pairs of boots or pulls, rounds of compressors, idle sandboxes (default 5)
  --quick      no transfers of 1 GiB, no compressors that take a minute; half as many creates, fewer processes
  --only NAME  of the compressors, such as "zstd 1 128K"; of link: vsock, port, uart, break, return, fairness; may be repeated
  --json FILE  also writes every single measurement to FILE
`

interface Options {
  runs: number
  quick: boolean
  only: readonly string[]
  signal: AbortSignal
}

const subjects: Record<string, (options: Options) => Promise<Report> | AsyncIterable<Report>> = {
  boot: measureBoot,
  exec: measureExec,
  transfer: measureTransfer,
  memory: measureMemory,
  checksum: measureChecksum,
  image: measureImage,
  compressor: measureCompressor,
  manager: measureManager,
  load: measureLoad,
  restore: measureRestore,
  list: measureList,
  idle: measureIdle,
  link: measureLink,
  snapshots: measureSnapshots,
}
/** image and compressor need root, and the tools that tests make images with. */
const usual = ['boot', 'exec', 'transfer', 'memory', 'checksum']

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    help: { type: 'boolean', default: false },
    runs: { type: 'string', default: '5' },
    quick: { type: 'boolean', default: false },
    only: { type: 'string', multiple: true, default: [] },
    json: { type: 'string' },
  },
})
const runs = Number(values.runs)
const unknown = positionals.find((name) => subjects[name] === undefined)
if (values.help || unknown !== undefined || !Number.isInteger(runs) || runs < 1) {
  process.stdout.write(usage)
  process.exit(values.help ? 0 : 64)
}

const interrupted = new AbortController()
// Once: the measuring stops and its sandboxes are removed. Twice: Node's own way.
process.once('SIGINT', () => interrupted.abort(new Error('interrupted')))

const machine = `${cpus().length} × ${cpus()[0]?.model ?? 'unknown CPU'}, Node ${process.versions.node}`
console.log(`${machine}\n`)
const reports: Report[] = []
for (const name of positionals.length > 0 ? positionals : usual) {
  const options = { runs, quick: values.quick, only: values.only, signal: interrupted.signal }
  for await (const report of reportsOf(subjects[name]?.(options))) {
    reports.push(report)
    console.log(formatReport(report))
  }
}
/** Each as soon as it is there: what comes later may fail. */
async function* reportsOf(measured: Promise<Report> | AsyncIterable<Report> | undefined): AsyncGenerator<Report> {
  if (measured === undefined) return
  if (Symbol.asyncIterator in measured) yield* measured
  else yield await measured
}

if (values.json !== undefined) {
  const judged = reports.map((report) => ({
    ...report,
    verdicts: report.verdicts.map((verdict) => ({ ...verdict, isMet: isMet(verdict) })),
  }))
  const content = { version: 1, at: new Date().toISOString(), machine, reports: judged }
  await writeFile(values.json, `${JSON.stringify(content, undefined, 2)}\n`)
}
