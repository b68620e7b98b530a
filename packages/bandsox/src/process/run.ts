/** Runs one host command to its end: arguments as a list, output bounded, cancelled with its whole process group. */
import { spawn } from 'node:child_process'
import type { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'

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
  /** What the error of a failed command says of its output. Default: the end of stderr, or else of stdout. */
  quote?: (stdout: string, stderr: string) => string
}

/**
 * Runs a command and returns what it printed.
 *
 * @param argv Program and arguments; no shell is involved.
 * @throws `command-failed` with the exit status and what `quote` says; `host-missing` when the program is not installed;
 *   `timeout`; or `signal.reason`.
 */
export async function runCommand(
  argv: readonly string[],
  options: RunOptions = {},
): Promise<{ stdout: string; stderr: string }> {
  const [program, ...args] = argv
  if (program === undefined) throw new BandSoxError('internal', 'cannot run a command: no program given')
  const limit = options.timeoutMs === undefined ? undefined : AbortSignal.timeout(options.timeoutMs)
  const signal = AbortSignal.any([options.signal, limit].filter((each) => each !== undefined))
  const throwIfCut = () => {
    if (limit?.aborted && signal.reason === limit.reason) {
      throw new BandSoxError('timeout', `${program} did not end within ${options.timeoutMs} ms, and was killed`)
    }
    signal.throwIfAborted()
  }
  throwIfCut()
  const child = spawn(program, args, {
    cwd: options.cwd,
    env: options.env,
    detached: true, // its own process group: a cancelled tool takes its children with it
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
  })
  let isClosed = false
  const killGroup = () => {
    if (child.pid === undefined || isClosed) return
    // The program may have ended and left children that hold its outputs: their group keeps its number as long as one lives.
    try {
      process.kill(-child.pid, 'SIGKILL')
    } catch (error) {
      if (!isSystemError(error, 'ESRCH')) throw error // nobody is left in it
    }
    // A child in a group of its own may hold them still; nobody waits for that.
    child.stdout?.destroy()
    child.stderr?.destroy()
  }
  signal.addEventListener('abort', killGroup, { once: true })
  try {
    const [stdout, stderr, ended] = await Promise.all([
      collect(child.stdout, program),
      collect(child.stderr, program),
      new Promise<{ code: number | null; signalName: string | null }>((resolve, reject) => {
        child.once('error', (error) => reject(startFailure(program, error)))
        child.once('close', (code, signalName) => {
          isClosed = true
          resolve({ code, signalName })
        })
      }),
      feed(child.stdin, options.input),
    ])
    throwIfCut()
    if (ended.code !== 0) {
      const how = ended.code === null ? `was ended by ${ended.signalName}` : `exited with ${ended.code}`
      const { quote = (out, err) => err || out } = options
      const said = lastLines(quote(stdout, stderr)) || '(it printed nothing)'
      throw new BandSoxError('command-failed', `${argv.slice(0, 2).join(' ')} ${how}: ${said}`)
    }
    return { stdout, stderr }
  } catch (error) {
    killGroup()
    throwIfCut()
    throw error
  } finally {
    signal.removeEventListener('abort', killGroup)
  }
}

const lastLines = (text: string): string => text.trimEnd().split('\n').slice(-5).join('\n')

function startFailure(program: string, error: NodeJS.ErrnoException): BandSoxError {
  if (error.code === 'ENOENT') return new BandSoxError('host-missing', `${program} is not installed`, { cause: error })
  return new BandSoxError('command-failed', `cannot start ${program}: ${error.message}`, { cause: error })
}

async function collect(stream: Readable | null, program: string): Promise<string> {
  const chunks: Buffer[] = []
  let size = 0
  for await (const chunk of stream ?? []) {
    size += (chunk as Buffer).length
    if (size > OUTPUT_LIMIT_BYTES)
      throw new BandSoxError('command-failed', `${program} printed more than ${OUTPUT_LIMIT_BYTES} bytes`)
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
    if (error instanceof BandSoxError) throw error // of who makes the input
    if (!['EPIPE', 'ERR_STREAM_PREMATURE_CLOSE'].includes((error as NodeJS.ErrnoException).code ?? '')) {
      throw new BandSoxError('command-failed', `cannot feed input: ${messageOf(error)}`, { cause: error })
    }
  }
}
