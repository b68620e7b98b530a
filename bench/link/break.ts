/** How long an operation gets nothing when the vsock daemon is killed under it: from the kill to the next byte. */
import { setTimeout as delay } from 'node:timers/promises'
import { readRun } from '../internals.js'
import { type Report, spread } from '../report.js'
import { summarize } from '../statistics.js'
import { type Host, type WatchedAgent, watchedSandbox } from './watched-agent.js'

const RUNS = 5
const QUICK_RUNS = 1
const SIZE_BYTES = 64 * 1024 ** 2
/** How far an operation is when its link breaks. */
const SHARE = 0.3
const POLL_MS = 1
const PATIENCE_MS = 30_000
const GUEST_FILE = '/bench-file'

const operations = ['upload', 'download', 'exec'] as const
type OperationName = (typeof operations)[number]

interface Break {
  /** From the kill to the opening of the serial stream. */
  openedMs: number
  /** From the kill to the first byte over it. */
  nextByteMs: number
}

export async function measureBreak(
  host: Host,
  { quick, signal }: { quick: boolean; signal: AbortSignal },
): Promise<Report> {
  const all: Record<OperationName, Break[]> = { upload: [], download: [], exec: [] }
  for (let run = 0; run < (quick ? QUICK_RUNS : RUNS); run++) {
    for (const name of operations) {
      signal.throwIfAborted()
      console.error(`… break of an ${name}`.replace('an download', 'a download'))
      all[name].push(await breakOnce(host, name))
    }
  }
  return {
    subject: 'link: break',
    method: 'the vsock daemon is killed in the middle of 64 MiB, a sandbox each; ms from the kill, median (min–max)',
    columns: ['', 'serial stream opened', 'next byte', 'runs'],
    rows: operations.map((name) => [
      name,
      spread(summarize(all[name].map(({ openedMs }) => openedMs))),
      spread(summarize(all[name].map(({ nextByteMs }) => nextByteMs))),
      String(all[name].length),
    ]),
    verdicts: [],
    measurements: all,
  }
}

async function breakOnce(host: Host, name: OperationName): Promise<Break> {
  await using watched = await watchedSandbox(host)
  const { sandbox, agent, directory } = watched
  const content = Buffer.alloc(SIZE_BYTES, 1)
  if (name === 'download') await sandbox.files.write(GUEST_FILE, content)
  const { run } = await readRun(directory)
  const daemon = run?.vsock?.pid
  if (daemon === undefined) throw new Error('this host has no vsock daemon that could be killed')
  agent.progress = () => 0
  const operation =
    name === 'upload'
      ? sandbox.files.write(GUEST_FILE, content).then(({ sizeBytes }) => sizeBytes)
      : name === 'download'
        ? sandbox.files.read(GUEST_FILE).then(({ length }) => length)
        : printed(sandbox.exec(['head', '-c', String(SIZE_BYTES), '/dev/zero']).output, agent)
  operation.catch(() => undefined) // awaited below
  await until(() => agent.progress() > SIZE_BYTES * SHARE, 'the operation to be under way')
  const killedAt = performance.now()
  process.kill(daemon, 'SIGKILL')
  await until(() => serialSince(agent, killedAt) !== undefined, 'a serial stream')
  const opened = serialSince(agent, killedAt)
  const before = agent.progress()
  await until(() => agent.progress() > before, 'the next byte')
  const nextByteMs = performance.now() - killedAt
  const came = await operation
  if (came !== SIZE_BYTES) throw new Error(`${came} bytes of ${SIZE_BYTES} came`)
  return { openedMs: (opened?.at ?? Number.NaN) - killedAt, nextByteMs }
}

const serialSince = (agent: WatchedAgent, at: number) =>
  agent.opened.find((connection) => connection.kind === 'serial' && connection.at > at)

/** Takes all output, and lets the agent's progress count it. */
async function printed(output: AsyncIterable<{ data: Uint8Array }>, agent: WatchedAgent): Promise<number> {
  let bytes = 0
  agent.progress = () => bytes
  for await (const { data } of output) bytes += data.length
  return bytes
}

async function until(isTrue: () => boolean, what: string): Promise<void> {
  const deadline = performance.now() + PATIENCE_MS
  while (!isTrue()) {
    if (performance.now() > deadline) throw new Error(`waited ${PATIENCE_MS} ms in vain for ${what}`)
    await delay(POLL_MS)
  }
}
