/** The guest's own errors (PROTOCOL.md section 2), as errors of ours. */
import { BandSoxError, type ErrorCode, printableLine } from '@bandsox/sdk'

/** Characters: enough for any sentence of ours. */
const MAX_MESSAGE = 1000

/** A map: the guest chooses the name, and an object has more names than were written into it. */
const codes = new Map<string, ErrorCode>(
  Object.entries({
    'protocol-unsupported': 'agent-incompatible',
    'bad-request': 'bad-request',
    'not-found': 'file-not-found',
    'not-a-directory': 'file-error',
    'is-a-directory': 'file-error',
    exists: 'file-error',
    'permission-denied': 'permission-denied',
    'read-only': 'file-error',
    'no-space': 'no-space',
    'not-a-file': 'file-error',
    'checksum-unsupported': 'bad-request',
    'checksum-mismatch': 'checksum-mismatch',
    'size-mismatch': 'checksum-mismatch',
    'command-not-found': 'command-not-found',
    'not-executable': 'command-not-executable',
    'no-such-user': 'bad-request',
    'no-such-folder': 'bad-request',
    aborted: 'cancelled',
    'arguments-too-long': 'bad-request',
    'path-invalid': 'file-error',
    'connection-refused': 'link-refused',
    'connection-failed': 'link-lost',
    stopping: 'wrong-state',
    frozen: 'busy',
    'hook-failed': 'hook-failed',
    'job-unknown': 'not-found',
  } satisfies Record<string, ErrorCode>),
)

/** What the guest itself could not do: over another link it could not either, whatever its code is called. */
export class GuestFault extends BandSoxError {}

/** Its processes stand still for a moment, as a state of it is being saved: the same may be asked for again soon. */
export const isFrozen = (error: unknown): boolean => error instanceof GuestFault && error.code === 'busy'

const hints = new Map<string, string>([
  ['frozen', 'a snapshot of it is being taken: try again in a moment'],
  ['job-unknown', 'the command has ended, and its end was read or forgotten'],
])

/** The guest's sentence says what it could not do, to what, and why. */
export function guestFault(fault: { code: string; message: string }): BandSoxError {
  const said = printableLine(fault.message)
  // What a hook has printed comes last, and says most.
  const message = `in the guest: ${fault.code === 'hook-failed' ? said : said.slice(0, MAX_MESSAGE)}`
  const code = codes.get(fault.code)
  // PROTOCOL.md section 2: an unknown code means `internal`. It is the guest's word, so not yet a defect of ours to report.
  if (code === undefined)
    return new GuestFault('internal', message, { hint: 'see what the guest printed: bandsox logs ID' })
  const hint = hints.get(fault.code)
  return new GuestFault(code, message, hint === undefined ? {} : { hint })
}
