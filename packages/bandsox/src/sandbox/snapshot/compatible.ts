/** Whether this host can load what another, or itself at another time, has saved. */
import { BandSoxError } from '@bandsox/sdk'
import { FIRST_CID, FIRST_PORT } from '../../store/numbers.js'
import type { SandboxRecord } from '../../store/record.js'
import type { Host } from '../host.js'
import { machineSpec } from '../start-machine.js'

/** What of a saved machine is compared. */
export interface SavedFacts {
  machine: NonNullable<SandboxRecord['machine']>
}

/**
 * @param record What would be started; it need not be on record yet.
 * @param what It, as the beginning of a sentence would name it: `snapshot snp_…`.
 * @throws `snapshot-incompatible` with every difference, before anything is started.
 */
export async function requireCompatible(
  host: Host,
  record: SandboxRecord | Omit<SandboxRecord, 'operation'>,
  { machine }: SavedFacts,
  what: string,
): Promise<void> {
  const { fingerprint } = machine
  if (fingerprint === undefined)
    throw incompatible(what, ['it was made by a version that did not write down what it depends on'])
  const numbers = { cid: FIRST_CID, port: FIRST_PORT } // which ones makes no difference
  const spec = await machineSpec(host, { operation: undefined, ...record }, numbers, machine)
  const differences = compareFingerprints(fingerprint, await host.vmm.fingerprint(spec))
  if (differences.length > 0) throw incompatible(what, differences)
}

/** Each difference in words; none where both are the same. */
export function compareFingerprints(saved: Record<string, string>, now: Record<string, string>): string[] {
  const names = [...new Set([...Object.keys(saved), ...Object.keys(now)])]
  const different = names.filter((name) => saved[name] !== now[name])
  return different.map((name) => `its ${name} was ${saved[name] ?? 'unknown'}, and is ${now[name] ?? 'unknown'} here`)
}

const incompatible = (what: string, reasons: string[]): BandSoxError =>
  new BandSoxError('snapshot-incompatible', `cannot restore ${what} on this host: ${reasons.join('; ')}`, {
    hint: 'its memory is of use only where it was made; its disk can be kept: bandsox image commit',
  })
