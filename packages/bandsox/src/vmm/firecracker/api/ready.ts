/** Waits until a Firecracker that has just been started listens at its API socket. */
import { type FSWatcher, watch } from 'node:fs'
import path from 'node:path'
import { BandSoxError, isSystemError } from '@bandsox/sdk'
import { pause } from '../../../process/pause.js'
import { connectForeignSocket } from '../../../process/unix-socket.js'

/** 44 to 150 ms were seen under emulation. */
const TIMEOUT_MS = 10_000
/** The pause between two tries is this part of the time waited so far, so it adds no more than that to it. */
const PAUSE_SHARE = 0.1
const MIN_PAUSE_MS = 1
const MAX_PAUSE_MS = 25
/** No socket yet; none that listens yet, or one that an ended process left behind; more connections than it can take in. */
const NOT_YET = ['ENOENT', 'ECONNREFUSED', 'EAGAIN']

export interface WaitForApiOptions {
  /** Default 10 s. */
  timeoutMs?: number | undefined
  signal?: AbortSignal | undefined
  /** Settles or aborts, however, when the process has ended: nobody will listen then. */
  ended?: AbortSignal | PromiseLike<unknown> | undefined
}

/**
 * Resolves as soon as somebody listens at `socketPath`: a call made then is answered, though perhaps a moment later.
 *
 * @param socketPath Absolute host path, of any length.
 * @throws `vmm-failed` when the process ends first, whose `cause` is the reason of `ended`, if it has one; `vmm-control` when
 *   nobody listens in time; system errors such as EACCES, which waiting does not cure; `signal.reason`.
 */
export async function waitForApi(socketPath: string, options: WaitForApiOptions = {}): Promise<void> {
  const { timeoutMs = TIMEOUT_MS } = options
  const stop = new AbortController()
  const release = abortAtEnd(stop, options)
  const begun = performance.now()
  const socket = watchFor(socketPath)
  try {
    for (;;) {
      const failure = await tryToConnect(socketPath, stop.signal)
      if (failure === undefined) return
      const waitedMs = performance.now() - begun
      if (waitedMs >= timeoutMs)
        throw new BandSoxError(
          'vmm-control',
          `Firecracker does not listen at its API socket ${socketPath} after ${timeoutMs} ms: ${failure.code}`,
          { cause: failure, hint: 'the host may be overloaded; see what it printed: bandsox logs ID' },
        )
      const pauseMs = Math.min(MAX_PAUSE_MS, Math.max(MIN_PAUSE_MS, waitedMs * PAUSE_SHARE))
      await Promise.race([pause(Math.min(pauseMs, timeoutMs - waitedMs), stop.signal), socket.appears()])
    }
  } finally {
    socket.close()
    release()
  }
}

/**
 * Hears of the socket's being made, some µs before somebody listens there: so the pause between two tries is no longer than need be. It is
 * no more than a hint, which counts once: a VMM could make it again and again.
 */
function watchFor(socketPath: string): { appears: () => Promise<void>; close: () => void } {
  const never = new Promise<void>(() => undefined)
  let told = false
  let tell: () => void = () => undefined
  const appeared = new Promise<void>((resolve) => {
    tell = resolve
  })
  let watcher: FSWatcher | undefined
  try {
    watcher = watch(path.dirname(socketPath), { persistent: false }, (_, name) => {
      if (name === path.basename(socketPath)) tell()
    })
    watcher.on('error', () => undefined) // the folder is gone: the tries tell
  } catch {
    // No folder yet, or no watches left: the pauses alone do.
  }
  return {
    async appears() {
      if (told) return await never
      await appeared
      told = true
    },
    close: () => watcher?.close(),
  }
}

/** @returns undefined when somebody listens; else why not yet. */
async function tryToConnect(socketPath: string, signal: AbortSignal): Promise<NodeJS.ErrnoException | undefined> {
  try {
    const socket = await connectForeignSocket(socketPath, signal)
    socket.on('error', () => undefined) // nothing is said over it
    socket.destroy()
    return undefined
  } catch (error) {
    signal.throwIfAborted()
    if (NOT_YET.some((code) => isSystemError(error, code))) return error as NodeJS.ErrnoException
    throw error
  }
}

function abortAtEnd(stop: AbortController, { signal, ended }: WaitForApiOptions): () => void {
  const onAbort = () => stop.abort(signal?.reason)
  const onEnd = (cause: unknown) =>
    stop.abort(new BandSoxError('vmm-failed', 'Firecracker ended before it listened at its API socket', { cause }))
  const onEndSignal = () => onEnd(ended instanceof AbortSignal ? ended.reason : undefined)
  if (signal?.aborted) onAbort()
  else signal?.addEventListener('abort', onAbort, { once: true })
  if (!(ended instanceof AbortSignal)) void ended?.then(onEnd, onEnd)
  else if (ended.aborted) onEndSignal()
  else ended.addEventListener('abort', onEndSignal, { once: true })
  return () => {
    signal?.removeEventListener('abort', onAbort)
    if (ended instanceof AbortSignal) ended.removeEventListener('abort', onEndSignal)
  }
}
