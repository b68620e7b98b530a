/** Which sandboxes a list leaves in. Pure. */
import { isDeepStrictEqual } from 'node:util'
import type { SandboxFilter } from '@bandsox/sdk'
import type { SandboxRecord } from './record.js'

type Filtered = Pick<SandboxRecord, 'state' | 'name' | 'labels' | 'metadata'>

/** In the order that they have. */
export function filtered<T extends Filtered>(records: readonly T[], filter: SandboxFilter): T[] {
  const matching = records.filter((record) => matches(record, filter))
  return filter.limit === undefined ? matching : matching.slice(Math.max(0, matching.length - filter.limit))
}

function matches({ state, name, labels, metadata }: Filtered, filter: SandboxFilter): boolean {
  if (filter.states !== undefined && !filter.states.includes(state.kind)) return false
  if (filter.name !== undefined && filter.name !== name) return false
  const hasLabels = Object.entries(filter.labels ?? {}).every(
    ([key, value]) => Object.hasOwn(labels, key) && (value === null || labels[key] === value),
  )
  const hasMetadata = Object.entries(filter.metadata ?? {}).every(
    ([key, value]) => Object.hasOwn(metadata, key) && isDeepStrictEqual(metadata[key], value),
  )
  return hasLabels && hasMetadata
}
