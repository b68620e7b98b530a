/** The guest's console, read from the bounded log that the shim keeps. */
import { type FSWatcher, watch } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'
import { CONSOLE_LOG, VMM_LOG } from '../process/shim.js'

const TAIL_BYTES = 16_384
const TAIL_LINES = 12
const READ_BYTES = 65_536

/**
 * The whole log, oldest first, or what was written `after`; with `follow`, also what comes, until `signal`, the loop or the
 * directory itself ends.
 */
export async function* readConsole(
  directory: string,
  options: { follow?: boolean; after?: ConsolePosition | undefined; signal?: AbortSignal } = {},
): AsyncGenerator<Uint8Array> {
  const { follow = false, after, signal } = options
  const file = path.join(directory, CONSOLE_LOG)
  // Watched before the first look, so that no change falls between the two.
  const changes = follow ? new FolderChanges(directory, signal) : undefined
  try {
    let reading = yield* readLog(file, after)
    while (changes !== undefined && (await changes.next())) {
      if (!(await isThere(directory))) return
      reading = yield* readLog(file, reading)
    }
  } finally {
    changes?.close()
  }
}

/** What the agent prints once it listens on `port`, or finds that it cannot yet; guest/cmd/bandsox-agent. */
const vsockReady = (port: number) => new RegExp(`^bandsox-agent: .*\\bready on vsock port ${port}\\b`, 'm')
const VSOCK_MISSING = /^bandsox-agent: .*\bwaits for vsock\b/m
const SERIAL_READY = /^bandsox-agent: .*\bready on the serial line\b/m
/** Kept of the console while its line is looked for. */
const WINDOW_CHARACTERS = 8_192

/** How far the log has been written; what comes later is of the next machine. */
export async function consolePosition(directory: string): Promise<ConsolePosition | undefined> {
  await using log = await openLog(path.join(directory, CONSOLE_LOG))
  return log && { inode: log.inode, offset: (await log.handle.stat()).size }
}

/**
 * Waits until the console says that the agent listens: on vsock, where the machine has it and the guest finds it, else on the serial
 * line. It is a hint from the guest, no more: it decides when a connection is first tried, since `vhost-device-vsock` confuses descriptors (and then never answers again) after one that was given up
 * before the guest's driver was there.
 *
 * @param options.after What earlier machines of this directory have said does not count.
 * @returns False when nothing was said within `timeoutMs`.
 * @throws `signal.reason`.
 */
export async function consoleSaysReady(
  directory: string,
  {
    port,
    hasVsock = true,
    after,
    timeoutMs,
    signal,
  }: {
    port: number
    hasVsock?: boolean
    after: ConsolePosition | undefined
    timeoutMs: number
    signal: AbortSignal
  },
): Promise<boolean> {
  const limit = AbortSignal.timeout(timeoutMs)
  const onVsock = vsockReady(port)
  const isReady = (text: string) =>
    (hasVsock && onVsock.test(text)) || (SERIAL_READY.test(text) && (!hasVsock || VSOCK_MISSING.test(text)))
  let window = ''
  const console = readConsole(directory, { follow: true, after, signal: AbortSignal.any([signal, limit]) })
  for await (const chunk of console) {
    window = (window + Buffer.from(chunk).toString('latin1')).slice(-WINDOW_CHARACTERS)
    if (isReady(window)) return true
  }
  signal.throwIfAborted()
  return false
}

/**
 * The end of what guest and VMM printed, as text for an error message.
 *
 * @param after What earlier machines of this directory have printed is left out.
 */
export async function consoleTail(directory: string, after?: ConsolePosition): Promise<string> {
  const parts = await Promise.all([
    tailOf(path.join(directory, CONSOLE_LOG), after),
    tailOf(path.join(directory, VMM_LOG), undefined),
  ])
  // biome-ignore lint/suspicious/noControlCharactersInRegex: a guest's control characters must not reach a terminal
  const text = parts.join('\n').replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '')
  const lines = text.trim().split('\n')
  const last = lines.slice(-TAIL_LINES)
  // Its reason comes before a long trace.
  const panic = lines.slice(0, -TAIL_LINES).findLast((line) => line.includes('Kernel panic'))
  return [...(panic === undefined ? [] : [panic]), ...last].join('\n')
}

export interface ConsolePosition {
  inode: number
  offset: number
}

/** Yields what the log holds beyond `from`; what was rotated away since comes first. */
async function* readLog(
  file: string,
  from: ConsolePosition | undefined,
): AsyncGenerator<Uint8Array, ConsolePosition | undefined> {
  // Opened first: from then on a rotation cannot put another file in its place.
  await using current = await openLog(file)
  await using rotated = await openLog(`${file}.1`)
  const isSame = current !== undefined && current.inode === from?.inode
  if (rotated !== undefined && rotated.inode !== current?.inode && !isSame) {
    // Of a reader who was further back than one rotation a part is lost: the log is bounded.
    yield* readFrom(rotated, rotated.inode === from?.inode ? from.offset : 0)
  }
  if (current === undefined) return from
  let offset = isSame ? from.offset : 0
  for await (const chunk of readFrom(current, offset)) {
    offset += chunk.length
    yield chunk
  }
  return { inode: current.inode, offset }
}

interface OpenLog extends AsyncDisposable {
  handle: FileHandle
  inode: number
}

/** @returns undefined when nothing was printed yet, or nothing was rotated yet. */
async function openLog(file: string): Promise<OpenLog | undefined> {
  try {
    const handle = await open(file)
    return { handle, inode: (await handle.stat()).ino, [Symbol.asyncDispose]: () => handle.close() }
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}

async function* readFrom({ handle }: OpenLog, start: number): AsyncGenerator<Uint8Array> {
  for (let position = start; ; ) {
    const { bytesRead, buffer } = await handle.read(Buffer.allocUnsafe(READ_BYTES), 0, READ_BYTES, position)
    if (bytesRead === 0) return
    position += bytesRead
    yield buffer.subarray(0, bytesRead)
  }
}

async function isThere(folder: string): Promise<boolean> {
  try {
    return (await stat(folder)).isDirectory()
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return false
    throw error
  }
}

/** Tells of changes in a folder, also of those that happened while nobody waited. */
class FolderChanges {
  /** The folder rather than the log: rotation puts another file in its place. */
  readonly #watcher: FSWatcher
  readonly #signal: AbortSignal | undefined
  #hasChanged = false
  #failure: Error | undefined
  #wake: () => void = () => undefined

  constructor(folder: string, signal: AbortSignal | undefined) {
    this.#signal = signal
    this.#watcher = watch(folder)
    this.#watcher.on('change', () => {
      this.#hasChanged = true
      this.#wake()
    })
    this.#watcher.on('error', (error) => {
      this.#failure ??= error
      this.#wake()
    })
    signal?.addEventListener('abort', this.#aborted)
  }

  /** Waits for a change since the last call. @returns False when `signal` was aborted. */
  async next(): Promise<boolean> {
    while (!this.#hasChanged && this.#failure === undefined && !this.#signal?.aborted) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
    if (this.#failure !== undefined) throw this.#failure
    this.#hasChanged = false
    return this.#signal?.aborted !== true
  }

  close(): void {
    this.#signal?.removeEventListener('abort', this.#aborted)
    this.#watcher.close()
  }

  readonly #aborted = () => this.#wake()
}

async function tailOf(file: string, after: ConsolePosition | undefined): Promise<string> {
  await using log = await openLog(file)
  if (log === undefined) return ''
  const { size } = await log.handle.stat()
  const start = Math.max(size - TAIL_BYTES, log.inode === after?.inode ? after.offset : 0)
  const buffer = Buffer.alloc(Math.max(0, size - start))
  const { bytesRead } = await log.handle.read(buffer, 0, buffer.length, start)
  return buffer.toString('utf8', 0, bytesRead)
}
