/**
 * Lends this process's terminal to a command in the guest, and takes it back as it was on every way out.
 *
 * A lent terminal is *raw*: what is typed goes to the guest byte by byte, Ctrl-C as well, and what the guest's terminal shows
 * comes out unchanged. The guest's kernel does the echo, the line editing and the signals. A shell that gets a raw terminal back
 * seems dead, so it is taken back before anything else is done: at the end, at an error, by a signal, and at `process.exit`. Only
 * SIGKILL leaves no time for it; `stty sane` helps then.
 */
import { spawnSync } from 'node:child_process'
import { BandSoxError, type ExecOptions, type Job, messageOf, type TerminalSize } from '@bandsox/sdk'
import { attach } from './attach.js'
import type { Context } from './context.js'
import { LeaveKeys } from './leave-keys.js'

/** What a terminal that knows no size of its own is taken for, as ever. */
const USUAL_SIZE = { cols: 80, rows: 24 }
/** PROTOCOL.md section 3. */
const LARGEST_SIDE = 10_000

const endingSignals = ['SIGINT', 'SIGTERM', 'SIGHUP', 'SIGQUIT'] as const

/** What a command at our terminal gets on top of its own options. */
export type TerminalOptions = Pick<ExecOptions, 'pty' | 'input' | 'signal' | 'env'>

/** @throws `bad-request` where there is no terminal to lend: before anything is made. */
export function requireTerminal({ isJson }: Context, hint: string): void {
  const refuse = (reason: string): never => {
    throw new BandSoxError('bad-request', `cannot give the command a terminal: ${reason}`, { hint })
  }
  if (isJson) refuse('what it shows is no JSON')
  if (!process.stdin.isTTY) refuse('standard input is no terminal')
  if (!process.stdout.isTTY) refuse('standard output is no terminal')
}

/**
 * Runs a command at this terminal until it ends.
 *
 * @param options.interactive Whether it gets what is typed; else the terminal stays as it is, and Ctrl-C is for us.
 * @returns The exit status.
 * @throws `cancelled` when it was left by `Enter ~ .`, by a signal, or because the terminal was closed.
 */
export async function attachTerminal(
  context: Context,
  options: { interactive: boolean },
  start: (own: TerminalOptions) => Job,
): Promise<number> {
  const left = new AbortController()
  const leave = (reason: string) => left.abort(new BandSoxError('cancelled', reason))
  const { TERM } = process.env
  const job = start({
    pty: currentSize(),
    signal: AbortSignal.any([context.signal, left.signal]),
    ...(options.interactive && { input: typedKeys(leave) }),
    ...(TERM !== undefined && TERM !== '' && { env: { TERM } }),
  })
  const resize = () => {
    const { cols, rows } = currentSize()
    job.resize(cols, rows)
  }
  process.stdout.on('resize', resize)
  const takeBack = options.interactive ? lend(context, leave) : () => undefined
  try {
    return await attach(context, job)
  } catch (error) {
    takeBack()
    process.stdout.write('\n') // the guest may have left the cursor in the midst of a line
    throw error
  } finally {
    takeBack()
    process.stdout.off('resize', resize)
  }
}

function currentSize(): TerminalSize {
  const side = (size: number, usual: number) => (size > 0 ? Math.min(size, LARGEST_SIDE) : usual)
  const { columns, rows } = process.stdout
  return { cols: side(columns, USUAL_SIZE.cols), rows: side(rows, USUAL_SIZE.rows) }
}

/** Standard input while it is lent. Its end is the terminal's: no key means "end" to us. */
async function* typedKeys(leave: (reason: string) => void): AsyncGenerator<Uint8Array> {
  const keys = new LeaveKeys()
  for await (const chunk of process.stdin) {
    const { passed, leaves } = keys.take(chunk as Buffer)
    if (passed.length > 0) yield passed
    if (leaves) leave('the terminal was left by its keys; the command was killed')
  }
  leave('the terminal was closed; the command was killed')
}

/** @returns Takes the terminal back, and keeps standard input for whoever comes after us. Harmless when repeated. */
function lend(context: Context, leave: (reason: string) => void): () => void {
  const { stdin } = process
  let isOver = false
  const makeRaw = () => {
    if (isOver) return
    stdin.setRawMode(true)
    keepOutputAsItIs(context)
  }
  const makeCooked = () => stdin.setRawMode(false) // the terminal's settings from before the first `setRawMode`, all of them
  const takeBack = () => {
    if (isOver) return
    isOver = true
    makeCooked()
    for (const name of endingSignals) process.off(name, end)
    process.off('SIGTSTP', suspend)
    process.off('SIGCONT', resume)
    process.off('exit', takeBack)
    // What is typed from here on is for the shell, though the command may have been waiting for it.
    stdin.destroy()
  }
  const end = (name: NodeJS.Signals) => {
    takeBack() // at once: a second signal finds no handler, and ends us
    leave(`interrupted by ${name}`)
  }
  const suspend = () => {
    makeCooked()
    process.kill(process.pid, 'SIGSTOP')
  }
  const resume = () => {
    makeRaw()
    process.kill(process.pid, 'SIGWINCH') // the window may have another size by now, and nobody told us
  }
  // Reading or setting a terminal that was closed: nothing is left to take back.
  stdin.on('error', (error) => leave(`the terminal was closed; the command was killed: ${messageOf(error)}`))
  for (const name of endingSignals) process.on(name, end)
  process.on('SIGTSTP', suspend) // by `kill`: Ctrl-Z is the guest's
  process.on('SIGCONT', resume)
  process.on('exit', takeBack)
  makeRaw()
  return takeBack
}

/**
 * Node's raw mode leaves the terminal to make CR LF of LF, which the guest's terminal has done already where it is wanted: a
 * full-screen program that moves the cursor straight down by LF would find it in the first column. Node cannot switch that off,
 * but what it restores at the end includes it.
 */
function keepOutputAsItIs({ debug }: Context): void {
  const { error, status } = spawnSync('stty', ['-opost'], { stdio: ['inherit', 'ignore', 'ignore'] })
  if (error !== undefined) debug(`the terminal's output is not raw: ${messageOf(error)}`)
  else if (status !== 0) debug(`the terminal's output is not raw: stty ended with ${status}`)
}
