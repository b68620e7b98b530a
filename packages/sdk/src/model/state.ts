/** The states of a sandbox, and the one table that says what may be asked of it when. */
import { BandSoxError } from './errors.js'

export type SandboxState =
  | { kind: 'creating'; since: string }
  | { kind: 'running'; since: string }
  | { kind: 'paused'; since: string }
  | { kind: 'stopping'; since: string }
  | { kind: 'stopped'; since: string }
  | { kind: 'hibernated'; since: string }
  /** The machine ended by itself or could not be made; `reason` says how. */
  | { kind: 'failed'; since: string; reason: string }

export type StateName = SandboxState['kind']

/** Library, server, CLI and dashboard all refuse by this table, with the same sentence. */
export const allowedIn = {
  exec: ['running'],
  transfer: ['running'],
  pause: ['running'],
  resume: ['paused'],
  stop: ['creating', 'running', 'paused', 'stopping'],
  logs: ['creating', 'running', 'paused', 'stopping', 'stopped', 'failed'],
  delete: ['stopped', 'hibernated', 'failed'],
} as const satisfies Record<string, readonly StateName[]>

export type Operation = keyof typeof allowedIn

const remedies: Partial<Record<StateName, (id: string) => string>> = {
  creating: () => 'another command makes it: wait for that',
  paused: (id) => `let it run on: bandsox vm resume ${id}`,
}

/** @throws `wrong-state` unless the table allows `operation` in `state`. */
export function requireAllowed(operation: Operation, id: string, state: SandboxState): void {
  const allowed: readonly StateName[] = allowedIn[operation]
  if (allowed.includes(state.kind)) return
  const reason = state.kind === 'failed' ? ` (${state.reason})` : ''
  const hint = remedies[state.kind]?.(id)
  throw new BandSoxError(
    'wrong-state',
    `cannot ${operation} sandbox ${id}: it is ${state.kind}${reason}; ${operation} needs: ${allowed.join(', ')}`,
    hint === undefined ? {} : { hint },
  )
}
