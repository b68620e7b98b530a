/** The guest's own errors (PROTOCOL.md section 2), as errors of ours. */
import { BandSoxError, type ErrorCode } from '@bandsox/sdk'

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
    stopping: 'wrong-state',
  } satisfies Record<string, ErrorCode>),
)

/** The guest's sentence says what it could not do, to what, and why. */
export function guestFault(fault: { code: string; message: string }): BandSoxError {
  const message = `in the guest: ${printable(fault.message)}`
  const code = codes.get(fault.code)
  // PROTOCOL.md section 2: an unknown code means `internal`. It is the guest's word, so not yet a defect of ours to report.
  if (code === undefined)
    return new BandSoxError('internal', message, { hint: 'see what the guest printed: bandsox logs ID' })
  return new BandSoxError(code, message)
}

/** The text comes from the guest and may reach a terminal: control characters would be obeyed there. */
function printable(text: string): string {
  // Also those that turn the direction of writing, by which one name looks like another (Unicode TR 36).
  // biome-ignore lint/suspicious/noControlCharactersInRegex: they are what is looked for
  return text.replace(/[\u0000-\u001f\u007f-\u009f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, '\u{fffd}').slice(0, 1000)
}
