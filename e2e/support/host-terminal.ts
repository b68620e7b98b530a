/** A terminal of this host with the command `bandsox` at it, as a person has it. Made by script(1) of util-linux, which every Debian has. */
import { type ChildProcess, execFileSync, spawn } from 'node:child_process'
import { once } from 'node:events'
import { cliPath } from './command-line.js'
import { until } from './storage.js'

/** A VM under emulation may take its time. */
const PATIENCE_MS = 20_000

/** Says which terminal it is and how it is set, runs the words, and says how it is set then, and after `stty sane`. */
const SESSION = `
stty cols 100 rows 30
echo "tty=$(tty) before=$(stty -g)"
sh -c 'echo "pid=$$."; exec "$@"' sh "$@"
echo "status=$? after=$(stty -g)."
stty sane
echo "sane=$(stty -a | tr '\\n' ' ')"
`

export class HostTerminal {
  readonly #script: ChildProcess
  #shown = Buffer.alloc(0)
  #looked = 0
  readonly #closed: Promise<unknown>

  private constructor(script: ChildProcess) {
    this.#script = script
    this.#closed = once(script, 'close')
    script.stdout?.on('data', (data: Buffer) => {
      this.#shown = Buffer.concat([this.#shown, data])
    })
    script.stdin?.on('error', () => undefined) // typed into a terminal that is gone
  }

  /** Starts `bandsox ARGS` at a new terminal of 100 × 30. */
  static start(storage: string, args: readonly string[], env: NodeJS.ProcessEnv = {}): HostTerminal {
    const words = ['sh', '-c', SESSION, 'session', process.execPath, cliPath, '--storage', storage, ...args]
    const command = words.map((word) => `'${word.replaceAll("'", "'\\''")}'`).join(' ')
    const script = spawn('script', ['-qfec', command, '/dev/null'], {
      stdio: ['pipe', 'pipe', 'inherit'],
      env: { ...process.env, TERM: 'xterm', SHELL: '/bin/sh', ...env },
    })
    return new HostTerminal(script)
  }

  type(keys: string | Buffer): void {
    this.#script.stdin?.write(keys)
  }

  /** Waits for a text behind the last that was waited for. @returns The match. */
  async sees(pattern: RegExp | string): Promise<RegExpExecArray> {
    const expression = typeof pattern === 'string' ? new RegExp(pattern.replace(/[^\w\s]/g, '\\$&')) : pattern
    let match: RegExpExecArray | null = null
    try {
      await until(
        () => {
          match = expression.exec(this.#shown.subarray(this.#looked).toString('latin1'))
          return match !== null
        },
        String(pattern),
        PATIENCE_MS,
      )
    } catch (error) {
      throw new Error(`the terminal shows ${JSON.stringify(this.#shown.toString('latin1'))}`, { cause: error })
    }
    const found = match as unknown as RegExpExecArray
    this.#looked += found.index + found[0].length
    return found
  }

  /** How it was set before `bandsox` began, its name, and the process of `bandsox`. */
  async begins(): Promise<{ tty: string; before: string; pid: number }> {
    const [, tty = '', before = ''] = await this.sees(/tty=(\S+) before=(\S+)\r\n/)
    const [, pid] = await this.sees(/pid=(\d+)\./)
    return { tty, before, pid: Number(pid) }
  }

  /** Waits for the end of `bandsox`. */
  async ends(): Promise<{ status: number; after: string }> {
    const [, status, after = ''] = await this.sees(/status=(\d+) after=(\S+)\./)
    this.#script.stdin?.end()
    await this.#closed
    return { status: Number(status), after }
  }

  /** All settings after `stty sane`, once it has ended. */
  get sane(): string {
    return /sane=(.*)/.exec(this.#shown.toString('latin1'))?.[1] ?? ''
  }

  /** Closes it while `bandsox` is there, as a window does. */
  async close(): Promise<void> {
    this.#script.kill('SIGKILL')
    await this.#closed
  }
}

/** How a terminal of this host is set now. */
export const settingsOf = (tty: string): string => execFileSync('stty', ['-F', tty, '-g'], { encoding: 'utf8' }).trim()

/** Sets it: its size, as a window manager does, or `sane`. */
export function setTerminal(tty: string, ...words: string[]): void {
  execFileSync('stty', ['-F', tty, ...words])
}
