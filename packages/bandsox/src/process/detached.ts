/** Starts a program that outlives this one: of its own session, with nothing of ours but the environment. */
import { spawn } from 'node:child_process'
import { setPriority } from 'node:os'

/** Behind what a person waits for. */
const NICE = 10

/** @param onFailure Told when it could not be started. */
export function startDetached(argv: readonly [string, ...string[]], onFailure: (error: Error) => void): void {
  const [program, ...args] = argv
  const child = spawn(program, args, { detached: true, stdio: 'ignore', cwd: '/' })
  child.on('error', onFailure)
  child.unref()
  if (child.pid === undefined) return
  try {
    setPriority(child.pid, NICE)
  } catch {
    // It has ended already, or may not: it does the same at our own priority.
  }
}
