/** Running checksums on the host's side, by the names that the protocol negotiates. */
import { createHash } from 'node:crypto'
import { BandSoxError, type ChecksumName } from '@bandsox/sdk'
import xxhash from 'xxhash-wasm'

export interface Checksum {
  readonly algorithm: ChecksumName
  update(data: Uint8Array): void
  /** Lower-case hex; the checksum is used up. */
  digest(): string
}

/** Quickest first, as measured in a guest without hardware help: docs/performance.md. */
const known: readonly ChecksumName[] = ['xxh64', 'md5', 'sha256']

let wasm: ReturnType<typeof xxhash> | undefined

export async function createChecksum(algorithm: ChecksumName): Promise<Checksum> {
  if (algorithm === 'xxh64') {
    wasm ??= xxhash()
    const state = (await wasm).create64()
    return {
      algorithm,
      update: (data) => void state.update(data),
      digest: () => state.digest().toString(16).padStart(16, '0'),
    }
  }
  const hash = createHash(algorithm)
  return { algorithm, update: (data) => void hash.update(data), digest: () => hash.digest('hex') }
}

/**
 * The algorithm for a transfer: what the caller asked for, else the first that both ends know.
 *
 * @throws `bad-request` when the guest does not offer it.
 */
export function chooseChecksum(offered: readonly string[], wanted: ChecksumName | undefined): ChecksumName {
  if (wanted !== undefined) {
    if (!known.includes(wanted))
      throw new BandSoxError('bad-request', `checksum ${wanted} is unknown; there are: ${known.join(', ')}`)
    if (offered.includes(wanted)) return wanted
    throw new BandSoxError(
      'bad-request',
      `the guest's agent does not offer the checksum ${wanted}; it has: ${offered.join(', ')}`,
    )
  }
  const chosen = known.find((name) => offered.includes(name))
  if (chosen === undefined) throw new BandSoxError('agent-incompatible', 'the agent offers no checksum that we know')
  return chosen
}
