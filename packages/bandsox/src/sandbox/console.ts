/** The guest's console, read from the bounded log that the shim keeps. */
import { createReadStream, type FSWatcher, watch } from 'node:fs'
import { open, readFile, stat } from 'node:fs/promises'
import path from 'node:path'
import { isSystemError } from '@bandsox/sdk'
import { CONSOLE_LOG, VMM_LOG } from '../process/shim.js'

const TAIL_BYTES = 4096

/** The whole log, oldest first; with `follow`, also what comes, until `signal` or the loop ends. */
export async function* readConsole(directory: string, options: { follow?: boolean; signal?: AbortSignal } = {}): AsyncGenerator<Uint8Array> {
  const current = path.join(directory, CONSOLE_LOG)
  yield* readFrom(`${current}.1`, 0)
  let reading = yield* readLog(current, undefined)
  if (options.follow !== true) return
  // The folder is watched rather than the file: rotation puts another file in its place.
  const watcher = watch(directory)
  try {
    while (options.signal?.aborted !== true) {
      reading = yield* readLog(current, reading)
      await nextChange(watcher, options.signal)
    }
  } finally {
    watcher.close()
  }
}

/** The end of what guest and VMM printed, as text for an error message. */
export async function consoleTail(directory: string): Promise<string> {
  const parts = await Promise.all([tailOf(path.join(directory, CONSOLE_LOG)), tailOf(path.join(directory, VMM_LOG))])
  // biome-ignore lint/suspicious/noControlCharactersInRegex: a guest's control characters must not reach a terminal
  const text = parts.join('\n').replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f]/g, '')
  return text.trim().split('\n').slice(-12).join('\n')
}

interface Reading {
  inode: number
  offset: number
}

/** Yields what the log holds beyond `from`; after a rotation, the rest of the old file first. */
async function* readLog(file: string, from: Reading | undefined): AsyncGenerator<Uint8Array, Reading | undefined> {
  const now = await inodeOf(file)
  if (now === undefined) return from
  let offset = from?.offset ?? 0
  if (from !== undefined && from.inode !== now) {
    if ((await inodeOf(`${file}.1`)) === from.inode) yield* readFrom(`${file}.1`, from.offset)
    offset = 0
  }
  for await (const chunk of readFrom(file, offset)) {
    offset += chunk.length
    yield chunk
  }
  return { inode: now, offset }
}

async function* readFrom(file: string, start: number): AsyncGenerator<Uint8Array> {
  try {
    for await (const chunk of createReadStream(file, { start })) yield chunk as Buffer
  } catch (error) {
    if (!isSystemError(error, 'ENOENT')) throw error // nothing was printed yet, or nothing was rotated yet
  }
}

async function inodeOf(file: string): Promise<number | undefined> {
  try {
    return (await stat(file)).ino
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return undefined
    throw error
  }
}

function nextChange(watcher: FSWatcher, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve, reject) => {
    const settle = (act: () => void) => {
      watcher.off('change', changed).off('error', failed)
      signal?.removeEventListener('abort', changed)
      act()
    }
    const changed = () => settle(resolve)
    const failed = (error: Error) => settle(() => reject(error))
    watcher.once('change', changed).once('error', failed)
    signal?.addEventListener('abort', changed, { once: true })
  })
}

async function tailOf(file: string): Promise<string> {
  try {
    const { size } = await stat(file)
    if (size <= TAIL_BYTES) return await readFile(file, 'utf8')
    const handle = await open(file)
    try {
      const buffer = Buffer.alloc(TAIL_BYTES)
      const { bytesRead } = await handle.read(buffer, 0, TAIL_BYTES, size - TAIL_BYTES)
      return buffer.toString('utf8', 0, bytesRead)
    } finally {
      await handle.close()
    }
  } catch (error) {
    if (isSystemError(error, 'ENOENT')) return ''
    throw error
  }
}
