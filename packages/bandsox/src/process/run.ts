/** Runs one host command to its end: arguments as a list, output bounded, cancelled with its whole process group. */
import { spawn } from 'node:child_process'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { BandSoxError, messageOf } from '@bandsox/sdk'

/** Bytes kept of each output; a tool that prints more is a tool that we misuse. */
const OUTPUT_LIMIT_BYTES = 4 * 1024 * 1024

export interface RunOptions {
  cwd?: string
  env?: NodeJS.ProcessEnv
  /** Fed to standard input; /dev/null otherwise. */
  input?: Readable | string
  signal?: AbortSignal
  /** Default: none. */
  timeoutMs?: number
}

/**
 * Runs a command and returns what it printed.
 *
 * @param argv Program and arguments; no shell is involved.
 * @throws `command-failed` with the exit status and the end of stderr; `host-missing` when the program is not installed.
 */
export async function runCommand(argv: readonly string[], options: RunOptions = {}): Promise<{ stdout: string; stderr: string }> {
  const [program, ...args] = argv
  if (program === undefined) throw new BandSoxError('internal', 'cannot run a command: no program given')
  const signals = [options.signal, options.timeoutMs === undefined ? undefined : AbortSignal.timeout(options.timeoutMs)]
  const signal = AbortSignal.any(signals.filter((each) => each !== undefined))
  signal.throwIfAborted()
  const child = spawn(program, args, {
    cwd: options.cwd,
    env: options.env,
    detached: true, // its own process group: a cancelled tool takes its children with it
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
  })
  const killGroup = () => {
    if (child.pid === undefined || child.exitCode !== null || child.signalCode !== null) return
    process.kill(-child.pid, 'SIGKILL')
  }
  signal.addEventListener('abort', killGroup, { once: true })
  try {
    const [stdout, stderr, ended] = await Promise.all([
      collect(child.stdout, program),
      collect(child.stderr, program),
      new Promise<{ code: number | null; signalName: string | null }>((resolve, reject) => {
        child.once('error', (error) => reject(startFailure(program, error)))
        child.once('close', (code, signalName) => resolve({ code, signalName }))
      }),
      feed(child.stdin, options.input),
    ])
    signal.throwIfAborted()
    if (ended.code !== 0) {
      const how = ended.code === null ? `was ended by ${ended.signalName}` : `exited with ${ended.code}`
      throw new BandSoxError('command-failed', `${argv.slice(0, 2).join(' ')} ${how}: ${lastLines(stderr || stdout)}`)
    }
    return { stdout, stderr }
  } catch (error) {
    killGroup()
    throw error
  } finally {
    signal.removeEventListener('abort', killGroup)
  }
}

const lastLines = (text: string): string => text.trimEnd().split('\n').slice(-5).join('\n') || '(it printed nothing)'

function startFailure(program: string, error: NodeJS.ErrnoException): BandSoxError {
  if (error.code === 'ENOENT') return new BandSoxError('host-missing', `${program} is not installed`, { cause: error })
  return new BandSoxError('command-failed', `cannot start ${program}: ${error.message}`, { cause: error })
}

async function collect(stream: Readable | null, program: string): Promise<string> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of stream ?? []) {
    size += (chunk as Buffer).length
    if (size > OUTPUT_LIMIT_BYTES) throw new BandSoxError('command-failed', `${program} printed more than ${OUTPUT_LIMIT_BYTES} bytes`)
    chunks.push(chunk as Buffer)
  }
  return Buffer.concat(chunks).toString('utf8')
}

/** A tool may stop reading before the end of its input (EPIPE): its exit status tells then, not our pipe. */
async function feed(stdin: NodeJS.WritableStream | null, input: Readable | string | undefined): Promise<void> {
  if (stdin === null || input === undefined) return
  try {
    await pipeline(typeof input === 'string' ? [input] : input, stdin)
  } catch (error) {
    if (!['EPIPE', 'ERR_STREAM_PREMATURE_CLOSE'].includes((error as NodeJS.ErrnoException).code ?? '')) {
      throw new BandSoxError('command-failed', `cannot feed input: ${messageOf(error)}`, { cause: error })
    }
  }
}
