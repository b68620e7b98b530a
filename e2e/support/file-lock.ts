/** One process at a time, by a lock that the kernel takes back from a process that dies. */
import { spawn } from 'node:child_process'

/**
 * Waits for the lock, runs `work`, and releases it.
 *
 * @param file Made where it is not there, and left. Node has no flock(2): flock(1) holds it as long as its input is open.
 */
export async function withFileLock<T>(file: string, work: () => Promise<T>): Promise<T> {
  const holder = spawn('flock', [file, 'sh', '-c', 'echo held; exec cat'], { stdio: ['pipe', 'pipe', 'inherit'] })
  const ended = new Promise<void>((resolve, reject) => {
    holder.once('error', reject)
    holder.once('close', () => resolve())
  })
  const held = new Promise<true>((resolve) => holder.stdout.once('data', () => resolve(true)))
  if ((await Promise.race([held, ended])) !== true) throw new Error(`cannot lock ${file}`)
  try {
    return await work()
  } finally {
    holder.stdin.end()
    await ended
  }
}
