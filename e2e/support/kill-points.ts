/** Moments at which a test kills somebody: after a while, or as soon as a file is there. */
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { namesIn, until } from './storage.js'

const POLL_MS = 1

/** `gone`: that was there before. */
export type Moment = { afterMs: number } | { file: RegExp } | { gone: RegExp }

/** As a test's name tells of it. */
export function momentText(moment: Moment): string {
  if ('afterMs' in moment) return `after ${moment.afterMs} ms`
  return 'file' in moment ? `at ${moment.file.source}` : `without ${moment.gone.source}`
}

/** Paths below a storage folder that come and go with operations, three levels deep. */
export function passingPaths(storage: string): string[] {
  return ['snapshots', 'vms'].flatMap((folder) =>
    namesIn(path.join(storage, folder)).flatMap((name) => {
      const entry = `${folder}/${name}`
      const names = namesIn(path.join(storage, entry))
      const states = names.filter((each) => /^(loaded|saved|hibernated(\.new)?)$/.test(each))
      return [
        entry,
        ...names.map((each) => `${entry}/${each}`),
        ...states.flatMap((state) =>
          namesIn(path.join(storage, entry, state)).map((each) => `${entry}/${state}/${each}`),
        ),
      ]
    }),
  )
}

/** Waits for the moment, or for the end of the child, whichever comes first. */
export async function momentOf(moment: Moment, storage: string, child: ChildProcess): Promise<void> {
  const hasEnded = () => child.exitCode !== null || child.signalCode !== null
  if ('afterMs' in moment) {
    if (!hasEnded()) await Promise.race([delay(moment.afterMs), once(child, 'exit')])
    return
  }
  const before = new Set(passingPaths(storage))
  while (!hasEnded()) {
    const now = passingPaths(storage)
    if ('file' in moment && now.some((each) => !before.has(each) && moment.file.test(each))) return
    if ('gone' in moment && [...before].some((each) => moment.gone.test(each) && !now.includes(each))) return
    await delay(POLL_MS)
  }
}

/** Living processes with these words on their command line, the storage folder among them. */
export function commandsOf(storage: string, word = ''): { pid: number; argv: string[] }[] {
  return namesIn('/proc').flatMap((name) => {
    if (!/^\d+$/.test(name) || Number(name) === process.pid) return []
    try {
      const argv = readFileSync(`/proc/${name}/cmdline`, 'latin1').split('\0')
      return argv.some((each) => each.startsWith(storage)) && (word === '' || argv.includes(word))
        ? [{ pid: Number(name), argv }]
        : []
    } catch {
      return [] // it has ended meanwhile
    }
  })
}

/** What works for a storage folder in the background has come to its end. */
export const untilQuiet = (storage: string, timeoutMs: number): Promise<void> =>
  until(() => commandsOf(storage).length === 0, `commands of ${storage} to end`, timeoutMs)
