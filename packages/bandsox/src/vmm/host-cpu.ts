/** What this host's processors are, as a saved state depends on them: the guest has seen their features, and goes on with them. */
import { createHash } from 'node:crypto'
import { readFile } from 'node:fs/promises'
import { lazily } from './lazily.js'

const FILE = '/proc/cpuinfo'
const NAMES = ['vendor_id', 'cpu family', 'model', 'model name', 'stepping']
const DIGEST_CHARACTERS = 16

/**
 * Asked several times at each start; the kernel takes a ms to say it, and processors are not changed under a process that runs.
 *
 * @returns Equal for two hosts whose processors are the same to a guest.
 */
export const hostCpu = lazily(async () => describeCpu(await readFile(FILE, 'latin1')))

/** @param cpuinfo All processors of a host are taken for equal: the first one is described. */
export function describeCpu(cpuinfo: string): string {
  const [first = ''] = cpuinfo.split('\n\n')
  const fields = new Map(
    first.split('\n').map((line) => {
      const [name = '', value = ''] = line.split(':', 2)
      return [name.trim(), value.trim()] as const
    }),
  )
  // In which order the kernel names them is its own affair.
  const flags = (fields.get('flags') ?? '').split(' ').sort().join(' ')
  return [...NAMES.map((name) => fields.get(name) ?? ''), digestOf(flags)].join(', ')
}

/** What a guest has of the host's processor. */
export interface HostProcessor {
  /** {@link hostCpu} */
  cpu: string
  /** How fast its clock runs, in kHz. Not known: not compared. */
  tscKhz?: number | undefined
}

/** The fact of a fingerprint that two boots of one host measure a little differently: it is compared with a tolerance, all others exactly. */
export const TSC_KHZ = 'tscKhz'

export const processorFacts = ({ cpu, tscKhz }: HostProcessor): Record<string, string> => ({
  cpu,
  ...(tscKhz !== undefined && { [TSC_KHZ]: String(tscKhz) }),
})

/** Of a shape: short, and equal only for what is equal. */
export const digestOf = (text: string): string =>
  createHash('sha256').update(text).digest('hex').slice(0, DIGEST_CHARACTERS)
