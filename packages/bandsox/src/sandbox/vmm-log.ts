/** What a VMM has logged, where it keeps a log of its own. Half trusted, as all that a VMM says. */
import path from 'node:path'
import { printableLine } from '@bandsox/sdk'
import { readTail } from '../process/read-tail.js'
import { FIRECRACKER_LOG } from '../vmm/firecracker/configuration.js'

const TAIL_BYTES = 16 * 1024
const MAX_LINES = 40

/** @returns The last lines, oldest first; undefined where there is no log. */
export async function vmmLog(directory: string): Promise<string[] | undefined> {
  const tail = await readTail(path.join(directory, FIRECRACKER_LOG), TAIL_BYTES)
  if (tail === undefined) return undefined
  const lines = tail.split('\n').filter((line) => line !== '')
  return lines.slice(-MAX_LINES).map(printableLine)
}
