/** Whether this host can load what another, or itself at another time, has saved. */
import { BandSoxError } from '@bandsox/sdk'
import { FIRST_CID, FIRST_PORT } from '../../store/numbers.js'
import type { SandboxRecord } from '../../store/record.js'
import { TSC_KHZ } from '../../vmm/host-cpu.js'
import type { Host } from '../host.js'
import { machineSpec } from '../start-machine.js'

/** Below it KVM takes two speeds for one (Linux, `tsc_tolerance_ppm`); two boots of one host measure theirs some millionths apart. */
const TSC_TOLERANCE = 250e-6

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

/** Each difference in words; none where both are the same. Pure. */
export function compareFingerprints(saved: Record<string, string>, now: Record<string, string>): string[] {
  const names = [...new Set([...Object.keys(saved), ...Object.keys(now)])]
  const different = names.filter((name) => name !== TSC_KHZ && saved[name] !== now[name])
  const said = different.map(
    (name) => `its ${name} was ${saved[name] ?? 'unknown'}, and is ${now[name] ?? 'unknown'} here`,
  )
  return [...said, ...compareClocks(Number(saved[TSC_KHZ]), Number(now[TSC_KHZ]))]
}

function compareClocks(savedKhz: number, nowKhz: number): string[] {
  if (!(Math.abs(savedKhz / nowKhz - 1) > TSC_TOLERANCE)) return [] // also where one is not known
  return [`its processor's clock (TSC) ran at ${inMhz(savedKhz)}, and runs at ${inMhz(nowKhz)} here`]
}

const inMhz = (khz: number): string => `${(khz / 1000).toFixed(1)} MHz`

const incompatible = (what: string, reasons: string[]): BandSoxError =>
  new BandSoxError('snapshot-incompatible', `cannot restore ${what} on this host: ${reasons.join('; ')}`, {
    hint: 'its memory is of use only where it was made; its disk can be kept: bandsox image commit',
  })
