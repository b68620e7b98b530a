/** Why a machine ended, as far as it has printed it: a guest's panic on its console, a VMM's error in its log or on its stderr. */
import { stat } from 'node:fs/promises'
import path from 'node:path'
import { printableLine } from '@bandsox/sdk'
import { readTail } from '../process/read-tail.js'
import { CONSOLE_LOG, VMM_LOG } from '../process/shim.js'
import { FIRECRACKER_LOG } from '../vmm/firecracker/configuration.js'

const TAIL_BYTES = 8 * 1024
const MAX_CHARACTERS = 300
/** `2026-01-01T00:00:00` */
const COMPARED = 19
/** Of the kernel; what follows is its reason. */
const PANIC = /Kernel panic - not syncing: (.*)/g
/** Of the agent, in each run: a panic before the last one was another run's. */
const READY = 'bandsox-agent: '
/** Of Firecracker's log, whose lines begin with a time and `[id:thread:level:…]`; and what Rust prints. */
const ERROR_LINE = /error|failed|panicked/i
/** Firecracker's last line says no more than the exit status. */
const NO_REASON = /exiting with error/i

export interface LastWords {
  /** The guest's kernel has panicked: why. */
  panic: string | undefined
  /** The last line that the VMM has logged, or else printed, of an error. */
  vmm: string | undefined
}

export const noWords: LastWords = { panic: undefined, vmm: undefined }

/**
 * Of the last run in a VM's directory.
 *
 * @param since When it began, as ISO 8601: logs go on over several runs.
 */
export async function lastWords(directory: string, since: string): Promise<LastWords> {
  const tailOf = async (name: string): Promise<string> => {
    const file = path.join(directory, name)
    const tail = await readTail(file, TAIL_BYTES)
    return tail === undefined || (await stat(file)).mtime.toISOString() < since ? '' : tail
  }
  const [console, stderr, log] = await Promise.all([tailOf(CONSOLE_LOG), tailOf(VMM_LOG), tailOf(FIRECRACKER_LOG)])
  return { panic: panicIn(console), vmm: errorIn(linesSince(log, since)) ?? errorIn(stderr) }
}

/** Firecracker's lines begin with their time, of which as much is compared as is in both. */
const linesSince = (log: string, since: string): string =>
  log
    .split('\n')
    .filter((line) => line.slice(0, COMPARED) >= since.slice(0, COMPARED))
    .join('\n')

function panicIn(console: string): string | undefined {
  const lastRun = console.slice(Math.max(0, console.lastIndexOf(READY)))
  const [first] = lastRun.matchAll(PANIC)
  return first?.[1] === undefined ? undefined : short(first[1])
}

function errorIn(text: string): string | undefined {
  const last = text.split('\n').findLast((line) => ERROR_LINE.test(line) && !NO_REASON.test(line))
  return last === undefined ? undefined : short(last)
}

/** Guest and VMM may print anything. */
const short = (line: string): string => printableLine(line.trim().slice(0, MAX_CHARACTERS))

/** For the end of a sentence; empty where there is nothing to say. */
export const describeLastWords = ({ panic, vmm }: LastWords): string =>
  [
    ...(panic === undefined ? [] : [`; the guest's kernel panicked: ${panic}`]),
    ...(vmm === undefined ? [] : [`; the VMM said: ${vmm}`]),
  ].join('')
