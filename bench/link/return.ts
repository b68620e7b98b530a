/** How long vsock works again before an operation takes it: a socket in front of it refuses for a while, and then lets through. */
import { once } from 'node:events'
import { rename } from 'node:fs/promises'
import { createConnection, createServer, type Socket } from 'node:net'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { openBandSox } from 'bandsox'
import { figure, type Report } from '../report.js'
import { quantile } from '../statistics.js'

const RUNS = 20
const QUICK_RUNS = 5
/** The refusal lasts between this and twice as long, so that it ends at any moment between two looks at the link. */
const REFUSED_MS = 500
const SOCKET = 'vsock.sock'
const WHOLE_SOCKET = 'whole-vsock.sock'

export async function measureReturn({ quick, signal }: { quick: boolean; signal: AbortSignal }): Promise<Report> {
  const runs = quick ? QUICK_RUNS : RUNS
  await using bandsox = await openBandSox()
  await using sandbox = await bandsox.create('bandsox/base', { vsock: 'on' })
  const { directory } = await sandbox.info()
  await rename(path.join(directory, SOCKET), path.join(directory, WHOLE_SOCKET))
  const returns: number[] = []
  try {
    await using front = await frontOf(path.join(directory, WHOLE_SOCKET), path.join(directory, SOCKET))
    // With no connection from before.
    await using anew = await bandsox.get(sandbox.id)
    const link = async () => (await anew.exec(['true']).wait()).link
    console.error('… return to vsock')
    for (let run = 0; run < runs; run++) {
      signal.throwIfAborted()
      if ((await link()) !== 'vsock') throw new Error('a command does not take vsock, which works')
      front.refuse(true)
      const end = performance.now() + REFUSED_MS * (1 + run / runs)
      while (performance.now() < end) {
        if ((await link()) !== 'serial') throw new Error('a command took vsock, which refuses')
      }
      front.refuse(false)
      const worksAt = performance.now()
      while ((await link()) !== 'vsock') await delay(0)
      returns.push(performance.now() - worksAt)
    }
  } finally {
    await rename(path.join(directory, WHOLE_SOCKET), path.join(directory, SOCKET))
  }
  return {
    subject: 'link: return',
    method: `commands one after the other while vsock refuses; ms from when it works again to the end of the first over it`,
    columns: ['', 'p50', 'p95', 'min', 'max', 'runs'],
    rows: [['exec', ...[0.5, 0.95, 0, 1].map((fraction) => figure(quantile(returns, fraction))), String(runs)]],
    verdicts: [],
    measurements: returns,
  }
}

/** A socket that leads to another one, or closes all of its connections and the coming ones without a word. */
async function frontOf(target: string, at: string): Promise<{ refuse(isRefusing: boolean): void } & AsyncDisposable> {
  const open = new Set<Socket>()
  const closeAll = () => {
    for (const socket of open) socket.destroy()
  }
  let refuses = false
  const server = createServer((host) => {
    if (refuses) {
      host.destroy()
      return
    }
    const guest = createConnection(target)
    for (const [one, other] of [
      [host, guest],
      [guest, host],
    ] as const) {
      open.add(one)
      one.on('error', () => undefined) // its close follows, and ends both
      one.on('close', () => {
        open.delete(one)
        other.destroy()
      })
      one.pipe(other)
    }
  })
  server.listen(at)
  await once(server, 'listening')
  return {
    refuse(isRefusing) {
      refuses = isRefusing
      if (isRefusing) closeAll()
    },
    async [Symbol.asyncDispose]() {
      closeAll()
      server.close()
      await once(server, 'close')
    },
  }
}
