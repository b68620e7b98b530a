/** The bare program inside a sandbox, beside the agent, so that both are measured in the same machine. */
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import type { Job, Sandbox } from 'bandsox'
import { BareConnection } from './bare-connection.js'

/** Built by scripts/bench.mjs, beside this file. */
export const benchGuest = fileURLToPath(new URL('bench-guest', import.meta.url))

/** Where bench-guest lies in the guest, and the folder for the files of both sides. */
export const guestFolder = '/bench'
export const guestProgram = `${guestFolder}/bench-guest`

/** A vsock port beside the agent's. */
const PORT = 7_000
const START_TIMEOUT_MS = 10_000

export async function uploadBenchGuest(sandbox: Sandbox): Promise<void> {
  await sandbox.files.upload(benchGuest, guestProgram, { mode: 0o755 })
}

/** Runs bench-guest until the result is disposed. */
export async function startBenchGuest(
  sandbox: Sandbox,
): Promise<{ connect(): Promise<BareConnection> } & AsyncDisposable> {
  await uploadBenchGuest(sandbox)
  const job = sandbox.exec([guestProgram, 'serve', String(PORT)])
  let isWanted = true
  const ended = showOutput(job).then((end) => {
    if (isWanted) console.error(`! bench-guest ended by itself: ${end}`)
  })
  ended.catch(() => undefined) // awaited when it is disposed
  const socketPath = path.join((await sandbox.info()).directory, 'vsock.sock')
  const connect = () => BareConnection.open(socketPath, PORT)
  for (const deadline = performance.now() + START_TIMEOUT_MS; ; await delay(50)) {
    try {
      const connection = await connect()
      connection.close()
      break
    } catch (error) {
      if (performance.now() > deadline) throw error
    }
  }
  return {
    connect,
    async [Symbol.asyncDispose]() {
      isWanted = false
      job.kill('SIGKILL')
      await ended
    },
  }
}

/** What bench-guest says is always about something that went wrong. */
async function showOutput(job: Job): Promise<string> {
  for await (const { data } of job.output) process.stderr.write(data)
  const { exitCode, signal } = await job.wait()
  return signal ?? `exit status ${exitCode}`
}
