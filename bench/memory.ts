/** How much more memory the manager's process takes while it transfers a large file. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { readFile } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { openBandSox } from 'bandsox'
import { temporaryFolder, writeRandomFile } from './host-file.js'
import { figure, type Report } from './report.js'

const SIZE_BYTES = 1024 ** 3
const QUICK_BYTES = 128 * 1024 ** 2
const SAMPLE_MS = 50
const TARGET_MIB = 20
const PAGE_BYTES = 4096
const MIB = 1024 ** 2

/** What memory-program.ts is told to do, and says when it has. */
export type Step = 'upload' | 'download'

export async function measureMemory({ quick, signal }: { quick: boolean; signal: AbortSignal }): Promise<Report> {
  const size = quick ? QUICK_BYTES : SIZE_BYTES
  await using bandsox = await openBandSox()
  await using sandbox = await bandsox.create('bandsox/base')
  await using scratch = await temporaryFolder()
  const file = path.join(scratch.folder, 'file')
  await writeRandomFile(file, size)
  const child = fork(fileURLToPath(new URL('memory-program.js', import.meta.url)), [sandbox.id, file])
  try {
    await once(child, 'message', { signal }) // it has opened the sandbox and run a command
    await delay(500, undefined, { signal })
    const before = await residentBytes(child.pid)
    const samples: Record<Step, number[]> = { upload: [], download: [] }
    for (const step of ['upload', 'download'] as const) {
      let isDone = false
      const done = once(child, 'message', { signal }).finally(() => {
        isDone = true
      })
      child.send(step)
      while (!isDone) {
        samples[step].push(await residentBytes(child.pid))
        await delay(SAMPLE_MS, undefined, { signal })
      }
      await done
    }
    const growth = (step: Step) => (Math.max(...samples[step]) - before) / MIB
    return {
      subject: 'memory',
      method: `resident memory of the manager's process, sampled every ${SAMPLE_MS} ms through ${size / MIB} MiB each way; MiB`,
      columns: ['', 'before', 'greatest', 'growth'],
      rows: (['upload', 'download'] as const).map((step) => [
        step,
        ...[before / MIB, Math.max(...samples[step]) / MIB, growth(step)].map(figure),
      ]),
      verdicts: (['upload', 'download'] as const).map((step) => ({
        figure: `growth in the ${step}`,
        value: growth(step),
        unit: ' MiB',
        target: { kind: 'at most', value: TARGET_MIB },
      })),
      measurements: { before, samples },
    }
  } finally {
    child.kill()
  }
}

/** By the kernel's count, from outside: the process itself might be too busy to look. */
async function residentBytes(pid: number | undefined): Promise<number> {
  const [, resident] = (await readFile(`/proc/${pid}/statm`, 'utf8')).split(' ')
  return Number(resident) * PAGE_BYTES
}
