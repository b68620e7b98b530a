/** Runs a few lines of module code in a Node process of its own: for what has to hold between processes. */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import type { TestScope } from './temporary-folder.js'

export interface ModuleProcess {
  child: ChildProcess
  /** What it printed, when it has ended. @throws With what it wrote to stderr, unless it exited with 0. */
  done: Promise<string>
  /** Resolves when it has printed `text`. */
  printed(text: string): Promise<void>
}

/** @param code An ES module; `url(file)` gives the URL of a module beside the test, and `args` the arguments. */
export function runModule(t: TestScope, base: string, code: string, args: string[] = []): ModuleProcess {
  const prelude = `const args = process.argv.slice(1); const url = (file) => new URL(file, ${JSON.stringify(base)}).href;\n`
  const child = spawn(process.execPath, ['--input-type=module', '-e', prelude + code, '--', ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  t.after(() => void child.kill('SIGKILL'))
  let stdout = ''
  let stderr = ''
  child.stdout.on('data', (chunk) => {
    stdout += String(chunk)
  })
  child.stderr.on('data', (chunk) => {
    stderr += String(chunk)
  })
  const done = once(child, 'close').then(([status]) => {
    if (status === 0) return stdout
    throw new Error(`it exited with ${status}: ${stderr}`)
  })
  done.catch(() => undefined) // a test that kills it does not wait for it
  return {
    child,
    done,
    async printed(text) {
      while (!stdout.includes(text)) {
        if (child.exitCode !== null || child.signalCode !== null)
          throw new Error(`it ended before it printed ${text}: ${stderr}`)
        await Promise.race([once(child.stdout, 'data'), once(child, 'close')])
      }
    },
  }
}
