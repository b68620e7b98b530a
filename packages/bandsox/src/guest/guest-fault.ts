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
  } satisfies Record<string, ErrorCode>),
)

/** What the guest itself could not do: over another link it could not either, whatever its code is called. */
export class GuestFault extends BandSoxError {}

/** The guest's sentence says what it could not do, to what, and why. */
export function guestFault(fault: { code: string; message: string }): BandSoxError {
  const message = `in the guest: ${printableLine(fault.message).slice(0, MAX_MESSAGE)}`
  const code = codes.get(fault.code)
  // PROTOCOL.md section 2: an unknown code means `internal`. It is the guest's word, so not yet a defect of ours to report.
  if (code === undefined)
    return new GuestFault('internal', message, { hint: 'see what the guest printed: bandsox logs ID' })
  return new GuestFault(code, message)
}
