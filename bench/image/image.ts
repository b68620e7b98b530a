/** How long an image takes from the registry to a disk, beside skopeo, umoci and mksquashfs, and what a further sandbox of it writes. */
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { rm } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { openBandSox } from 'bandsox'
import { figure, type Report, spread } from '../report.js'
import { summarize } from '../statistics.js'
import { benchImage } from './bench-image.js'
import { scratchFolder } from './scratch.js'
import { missingTools, push, startRegistry } from './test-support.js'
import { allocatedBytes, type Usage, watch } from './watch.js'

const TARGET_RATIO = 1
const CREATE_TARGET_MIB = 4
const CREATES = 3
const DISK_SAMPLE_MS = 200
const MIB = 1024 ** 2

interface Pull extends Usage {
  /** Of files, at their most and at the end. */
  peakBytes: number
  finalBytes: number
  stages: Record<string, number>
}
type Kind = 'bandsox' | 'tools'

export async function measureImage({ runs, signal }: { runs: number; signal: AbortSignal }): Promise<Report> {
  const missing = missingTools()
  if (missing !== false) throw new Error(missing)
  const image = await benchImage()
  await using registry = await startRegistry()
  const reference = await push(image, registry)
  await using scratch = await scratchFolder()
  const kinds: Record<Kind, (folder: string) => Promise<Pull>> = {
    bandsox: (folder) => pullByBandSox(reference, folder, signal),
    tools: (folder) => pullByTools(reference, folder, signal),
  }
  const pulls: Record<Kind, Pull[]> = { bandsox: [], tools: [] }
  for (let run = 0; run < runs; run++) {
    for (const kind of run % 2 === 0 ? (['bandsox', 'tools'] as const) : (['tools', 'bandsox'] as const)) {
      signal.throwIfAborted()
      console.error(`… ${kind}, ${run + 1} of ${runs}`)
      const folder = path.join(scratch.folder, kind)
      pulls[kind].push(await kinds[kind](folder))
      await rm(folder, { recursive: true })
    }
  }
  return reportOn(pulls, await measureCreate(reference, signal))
}

async function pullByBandSox(reference: string, storage: string, signal: AbortSignal): Promise<Pull> {
  const program = fileURLToPath(new URL('pull-program.js', import.meta.url))
  let isDone = false
  const pulling = watch([process.execPath, program, storage, reference], signal).finally(() => {
    isDone = true
  })
  let peakBytes = 0
  while (!isDone) {
    await Promise.race([delay(DISK_SAMPLE_MS), pulling])
    peakBytes = Math.max(peakBytes, await allocatedBytes(storage).catch(() => 0)) // not made yet
  }
  const finalBytes = await allocatedBytes(storage)
  return { ...(await pulling), peakBytes: Math.max(peakBytes, finalBytes), finalBytes, stages: {} }
}

/** Nothing of it is removed between: what is there at the end is the most that there was. */
async function pullByTools(reference: string, folder: string, signal: AbortSignal): Promise<Pull> {
  const layout = `${folder}/layout:latest`
  const compress = ['mksquashfs', `${folder}/bundle/rootfs`, `${folder}/disk.squashfs`, '-quiet', '-no-progress']
  const commands = {
    folder: ['mkdir', folder],
    skopeo: ['skopeo', 'copy', '--quiet', '--src-tls-verify=false', `docker://${reference}`, `oci:${layout}`],
    umoci: ['umoci', 'unpack', '--image', layout, `${folder}/bundle`],
    mksquashfs: [...compress, '-comp', 'lz4'],
  }
  const usages: [string, Usage][] = []
  for (const [name, argv] of Object.entries(commands)) usages.push([name, await watch(argv, signal)])
  const bytes = await allocatedBytes(folder)
  return {
    seconds: usages.reduce((sum, [, { seconds }]) => sum + seconds, 0),
    memoryBytes: Math.max(...usages.map(([, { memoryBytes }]) => memoryBytes)),
    peakBytes: bytes,
    finalBytes: bytes,
    stages: Object.fromEntries(usages.map(([name, { seconds }]) => [name, seconds])),
  }
}

/** @returns Bytes that each further sandbox of an image made the host write. */
async function measureCreate(reference: string, signal: AbortSignal): Promise<number[]> {
  console.error('… create')
  await using bandsox = await openBandSox()
  await bandsox.images.pull(reference, { signal })
  try {
    const program = fileURLToPath(new URL('create-program.js', import.meta.url))
    const child = fork(program, [reference, String(CREATES)], { signal })
    const ended = once(child, 'exit').then(([code]) => {
      throw new Error(`the program that creates sandboxes exited with ${code}`)
    })
    const [written] = (await Promise.race([once(child, 'message'), ended])) as [number[]]
    await ended.catch(() => undefined)
    return written
  } finally {
    await bandsox.images.remove(reference)
  }
}

function reportOn(pulls: Record<Kind, Pull[]>, written: readonly number[]): Report {
  const all = (kind: Kind, get: (pull: Pull) => number) => summarize(pulls[kind].map(get))
  const row = (name: string, get: (pull: Pull) => number) => {
    const [ours, theirs] = [all('bandsox', get), all('tools', get)]
    return [name, spread(ours), spread(theirs), figure(ours.median / theirs.median)]
  }
  const ratios = pulls.bandsox.map(({ seconds }, run) => seconds / (pulls.tools[run]?.seconds ?? Number.NaN))
  const stages = ['skopeo', 'umoci', 'mksquashfs'] as const
  return {
    subject: 'image',
    method: `${pulls.bandsox.length} pairs of pulls, interleaved; median (min–max)`,
    columns: ['', 'bandsox', 'skopeo, umoci, mksquashfs', 'ratio'],
    rows: [
      row('seconds', ({ seconds }) => seconds),
      ...stages.map((stage) => [
        `of it ${stage}`,
        '',
        spread(all('tools', (pull) => pull.stages[stage] ?? Number.NaN)),
        '',
      ]),
      row('memory, MiB', ({ memoryBytes }) => memoryBytes / MIB),
      row('disk at most, MiB', ({ peakBytes }) => peakBytes / MIB),
      row('disk at the end, MiB', ({ finalBytes }) => finalBytes / MIB),
      ['pair by pair', '', '', spread(summarize(ratios))],
      ['written by a further create and delete, MiB', spread(summarize(written.map((bytes) => bytes / MIB))), '', ''],
    ],
    verdicts: [
      {
        figure: 'time of a pull / time of skopeo, umoci and mksquashfs, pair by pair',
        value: summarize(ratios).median,
        unit: ' ×',
        target: { kind: 'at most', value: TARGET_RATIO },
      },
      {
        figure: 'written by a further create and delete',
        value: summarize(written).median / MIB,
        unit: ' MiB',
        target: { kind: 'at most', value: CREATE_TARGET_MIB },
      },
    ],
    measurements: { pulls, written },
  }
}
