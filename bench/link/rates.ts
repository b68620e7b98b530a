/** Rates of upload and download over one link, beside a bare pump over the same kind of line: from disk to disk, and from memory to memory. */
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { pumpIn, pumpInBytes, pumpInPlain, pumpOut, pumpOutBytes, pumpOutPlain } from '../bare-pump.js'
import { writeRandomFile } from '../host-file.js'
import { figure, spread, type Verdict } from '../report.js'
import { summarize } from '../statistics.js'
import type { Line, LineName } from './lines.js'

/** Least ratio to the bare pump. */
const targets: Record<LineName, number> = { vsock: 0.9, port: 0.7, uart: 0.6 }
const KIB = 1024
const MIB = 1024 ** 2

interface Amount {
  uploadBytes: number
  downloadBytes: number
  warmUp: number
  runs: number
}
/** What a UART carries in a second, the others carry in a hundredth. */
const amounts: Record<LineName, Amount> = {
  vsock: { uploadBytes: 64 * MIB, downloadBytes: 64 * MIB, warmUp: 1, runs: 5 },
  port: { uploadBytes: 64 * MIB, downloadBytes: 64 * MIB, warmUp: 1, runs: 5 },
  uart: { uploadBytes: 256 * KIB, downloadBytes: MIB, warmUp: 0, runs: 3 },
}
const quickAmounts: Record<LineName, Amount> = {
  vsock: { ...amounts.vsock, warmUp: 0, runs: 1 },
  port: { ...amounts.port, warmUp: 0, runs: 1 },
  uart: { uploadBytes: 64 * KIB, downloadBytes: 256 * KIB, warmUp: 0, runs: 1 },
}

const kinds = ['file', 'bareFile', 'memory', 'bareMemory', 'plain'] as const
type Kind = (typeof kinds)[number]
/** A disk costs nothing beside a UART. */
const uartKinds: readonly Kind[] = ['file', 'bareFile', 'plain']

/** In the guest, on its disk and in its memory. */
const FILE = '/bench-file'
const IN_MEMORY = '/dev/shm/bench-file'
const BARE = '-bare'

export const ratesColumns = ['', 'file', 'bare pump', 'ratio', 'memory', 'bare pump', 'ratio', 'plain pump']

export interface Rates {
  rows: string[][]
  verdicts: Verdict[]
  /** Seconds of each run. */
  measurements: Record<string, Record<Kind, number[]>>
}

export async function measureRates(
  line: Line,
  { scratch, quick, signal }: { scratch: string; quick: boolean; signal: AbortSignal },
): Promise<Rates> {
  const { sandbox, bare, name } = line
  const { uploadBytes, downloadBytes, ...repeated } = (quick ? quickAmounts : amounts)[name]
  const onHost = (file: string) => path.join(scratch, file)
  const result: Rates = { rows: [], verdicts: [], measurements: {} }
  for (const [direction, bytes] of [
    ['upload', uploadBytes],
    ['download', downloadBytes],
  ] as const) {
    console.error(`… ${name}: ${direction}`)
    await writeRandomFile(onHost('source'), bytes)
    const content = await readFile(onHost('source'))
    if (direction === 'download') {
      // Each side downloads what it has, and has in memory: it was just written.
      await sandbox.exec(`head -c ${bytes} /dev/urandom > ${FILE}`).wait()
      await bare.ask(`make ${bytes} ${FILE}${BARE}`)
    }
    const works: Record<typeof direction, Record<Kind, () => Promise<unknown>>> = {
      upload: {
        file: () => sandbox.files.upload(onHost('source'), FILE),
        bareFile: () => pumpIn(bare, onHost('source'), FILE + BARE, bytes),
        memory: () => sandbox.files.write(IN_MEMORY, content),
        bareMemory: () => pumpInBytes(bare, content, IN_MEMORY + BARE),
        plain: () => pumpInPlain(bare, bytes),
      },
      download: {
        file: () => sandbox.files.download(FILE, onHost('back')),
        bareFile: () => pumpOut(bare, FILE + BARE, onHost('back-bare'), bytes),
        memory: () => sandbox.files.read(FILE),
        bareMemory: () => pumpOutBytes(bare, FILE + BARE, bytes),
        plain: () => pumpOutPlain(bare, bytes),
      },
    }
    // A file that is replaced is there twice for a moment, which is more than the memory has room for.
    const forget = async () => {
      await sandbox.exec(['rm', '-f', IN_MEMORY]).wait()
      await bare.ask(`remove ${IN_MEMORY}${BARE}`)
    }
    const wanted = name === 'uart' ? uartKinds : kinds
    const seconds = await interleave(wanted, works[direction], repeated, signal, forget)
    result.measurements[`${name} ${direction}`] = seconds
    const rate = (kind: Kind) => spread(summarize(seconds[kind].map((each) => bytes / each / 1e6)))
    const ratio = (ours: Kind, theirs: Kind) => summarize(seconds[theirs]).median / summarize(seconds[ours]).median
    const ofFiles = ratio('file', 'bareFile')
    const ofMemory = wanted.includes('memory') ? ratio('memory', 'bareMemory') : undefined
    result.rows.push([
      `${name}: ${direction} ${sizeName(bytes)}`,
      ...[rate('file'), rate('bareFile'), figure(ofFiles)],
      ...(ofMemory === undefined ? ['', '', ''] : [rate('memory'), rate('bareMemory'), figure(ofMemory)]),
      rate('plain'),
    ])
    const target = { kind: 'at least', value: targets[name] } as const
    result.verdicts.push({ figure: `${name}: ${direction} / bare pump`, value: ofFiles, unit: ' ×', target })
    if (ofMemory === undefined) continue
    result.verdicts.push({ figure: `${name}: ${direction} / bare pump, memory`, value: ofMemory, unit: ' ×', target })
  }
  return result
}

/** @returns Seconds of each run that counts. Who comes first changes from run to run. */
async function interleave(
  wanted: readonly Kind[],
  work: Record<Kind, () => Promise<unknown>>,
  { warmUp, runs }: { warmUp: number; runs: number },
  signal: AbortSignal,
  forget: () => Promise<void>,
): Promise<Record<Kind, number[]>> {
  const seconds: Record<Kind, number[]> = { file: [], bareFile: [], memory: [], bareMemory: [], plain: [] }
  for (let run = -warmUp; run < runs; run++) {
    for (const index of wanted.keys()) {
      signal.throwIfAborted()
      const kind = wanted[(index + run + warmUp) % wanted.length] as Kind
      await forget()
      const started = performance.now()
      await work[kind]()
      if (run >= 0) seconds[kind].push((performance.now() - started) / 1000)
    }
  }
  await forget()
  return seconds
}

const sizeName = (bytes: number) => (bytes >= MIB ? `${bytes / MIB} MiB` : `${bytes / KIB} KiB`)
