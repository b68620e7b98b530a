/** The states of a sandbox, and the one table that says what may be asked of it when. */
import { BandSoxError } from './errors.js'

export type SandboxState =
  | { kind: 'creating'; since: string }
  | { kind: 'running'; since: string }
  /** By a person; or, with a `reason`, by the VMM itself: the host's disk is full. */
  | { kind: 'paused'; since: string; reason?: string }
  | { kind: 'stopping'; since: string }
  | { kind: 'stopped'; since: string }
  | { kind: 'hibernated'; since: string }
  /** The machine ended by itself; `reason` says how. Its disk is there. */
  | { kind: 'failed'; since: string; reason: string }

export type StateName = SandboxState['kind']

export const stateNames = [
  'creating',
  'running',
  'paused',
  'stopping',
  'stopped',
  'hibernated',
  'failed',
] as const satisfies readonly StateName[]

/** Library, server, CLI and dashboard all refuse by this table, with the same sentence. */
export const allowedIn = {
  exec: ['running'],
  transfer: ['running'],
  start: ['stopped', 'hibernated', 'failed'],
  stop: ['creating', 'running', 'paused', 'stopping', 'hibernated'],
  restart: ['running', 'paused', 'stopped', 'hibernated', 'failed'],
  pause: ['running'],
  resume: ['paused', 'hibernated'],
  snapshot: ['running', 'paused'],
  fork: ['running', 'paused'],
  hibernate: ['running', 'paused'],
  /** Of the name, labels and metadata. */
  describe: ['running', 'paused', 'stopping', 'stopped', 'hibernated', 'failed'],
  /** Of the limits, and of memory. */
  limit: ['running', 'paused', 'stopped', 'failed'],
  /** Of virtual CPUs, which a machine has from its start. */
  reshape: ['stopped', 'failed'],
  /** What its VMM says of itself. */
  metrics: ['running', 'paused'],
  /** To an image. */
  commit: ['running', 'paused', 'stopped', 'hibernated', 'failed'],
  logs: ['creating', 'running', 'paused', 'stopping', 'stopped', 'hibernated', 'failed'],
  delete: ['stopped', 'hibernated', 'failed'],
} as const satisfies Record<string, readonly StateName[]>

export type Operation = keyof typeof allowedIn

const remedies: Partial<Record<StateName, (id: string, operation: Operation) => string>> = {
  creating: () => 'another command makes it: wait for that',
  running: (id, operation) => {
    if (operation === 'start' || operation === 'resume') return 'it runs already'
    return operation === 'delete'
      ? `stop it first, or use --force: bandsox vm stop ${id}`
      : `stop it first: bandsox vm stop ${id}`
  },
  hibernated: (id, operation) =>
    operation === 'reshape'
      ? `give its state up, and keep its disk: bandsox vm stop ${id}`
      : `wake it up: bandsox vm resume ${id}`,
  paused: (id) => `let it run on: bandsox vm resume ${id}`,
  stopped: (id) => `start it: bandsox vm start ${id}`,
  failed: (id) => `see what it printed: bandsox logs ${id}; start it again: bandsox vm start ${id}`,
}

/** @throws `wrong-state` unless the table allows `operation` in `state`. */
export function requireAllowed(operation: Operation, id: string, state: SandboxState): void {
  const allowed: readonly StateName[] = allowedIn[operation]
  if (allowed.includes(state.kind)) return
  const reason = 'reason' in state && state.reason !== undefined ? ` (${state.reason})` : ''
  const hint = remedies[state.kind]?.(id, operation)
  throw new BandSoxError(
    'wrong-state',
    `cannot ${operation} sandbox ${id}: it is ${state.kind}${reason}; ${operation} needs: ${allowed.join(', ')}`,
    hint === undefined ? {} : { hint },
  )
}
