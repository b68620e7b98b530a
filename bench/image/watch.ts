/** What a program and its children take while they run: time, memory, space in a folder. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readdirSync, readFileSync } from 'node:fs'
import { lstat, readdir } from 'node:fs/promises'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'

const SAMPLE_MS = 50
const PAGE_BYTES = 4096
/** Of `st_blocks`, whatever the file system's own are: stat(2). */
const BLOCK_BYTES = 512

export interface Usage {
  seconds: number
  /** The greatest sum of the resident memory of all processes, as it was sampled. */
  memoryBytes: number
}

/** Runs a program to its end. @throws When it fails. */
export async function watch(argv: readonly string[], signal: AbortSignal): Promise<Usage> {
  const [program = '', ...args] = argv
  const started = performance.now()
  const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'inherit'], signal })
  const ended = once(child, 'close').finally(() => {
    isRunning = false
  })
  let isRunning = true
  let memoryBytes = 0
  const sampling = (async () => {
    while (isRunning) {
      memoryBytes = Math.max(memoryBytes, residentBytes(child.pid ?? -1))
      await Promise.race([delay(SAMPLE_MS), ended])
    }
  })()
  const [code] = (await ended) as [number | null]
  const seconds = (performance.now() - started) / 1000
  await sampling
  if (code !== 0) throw new Error(`${argv.join(' ')} exited with ${code}`)
  return { seconds, memoryBytes }
}

/** Of a process and all that come from it. Pages that several share are counted for each. */
function residentBytes(root: number): number {
  const children = new Map<number, { pid: number; pages: number }[]>()
  let pages = 0
  for (const name of readdirSync('/proc')) {
    if (!/^\d+$/.test(name)) continue
    const stat = readStat(name)
    if (stat === undefined) continue
    if (stat.pid === root) pages += stat.pages
    else children.set(stat.parent, [...(children.get(stat.parent) ?? []), stat])
  }
  const todo = [root]
  for (let next = todo.pop(); next !== undefined; next = todo.pop()) {
    for (const child of children.get(next) ?? []) {
      pages += child.pages
      todo.push(child.pid)
    }
  }
  return pages * PAGE_BYTES
}

/** See proc(5). */
function readStat(pid: string): { pid: number; parent: number; pages: number } | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, 'utf8')
    const fields = text.slice(text.lastIndexOf(')') + 2).split(' ') // from the third on: a name may hold spaces
    return { pid: Number(pid), parent: Number(fields[1]), pages: Number(fields[21]) }
  } catch {
    return undefined // it has ended meanwhile
  }
}

/** What the files of a folder take on the disk, each of several links once. */
export async function allocatedBytes(folder: string): Promise<number> {
  const seen = new Set<number>()
  let bytes = 0
  // With types: without them, Node 20 also lists what symbolic links lead to.
  for (const { parentPath, name } of await readdir(folder, { recursive: true, withFileTypes: true })) {
    const { ino, blocks } = await lstat(path.join(parentPath, name)).catch(() => gone)
    if (seen.has(ino)) continue
    seen.add(ino)
    bytes += blocks * BLOCK_BYTES
  }
  return bytes
}

/** Renamed or removed between two looks. */
const gone = { ino: 0, blocks: 0 }
