/** Every error that a user can meet: one class, one table of codes. */

/**
 * What each code means to the three ways of using BandSox: HTTP status, exit status of the CLI, and the remedy where one
 * holds for every occurrence (an error may carry a more exact one).
 *
 * Exit statuses follow sysexits.h where it has a word for it (64 usage, 69 unavailable, 70 software, 74 I/O, 75 try again,
 * 77 permission) and stay out of 1–63, which belong to commands in the guest.
 */
export const errorTable = {
  'bad-request': { http: 422, exit: 64, hint: undefined },
  'not-found': { http: 404, exit: 66, hint: 'see what there is: bandsox vm list' },
  'ambiguous-name': { http: 409, exit: 64, hint: 'use an id: bandsox vm list' },
  'wrong-state': { http: 409, exit: 75, hint: 'see its state: bandsox vm list' },
  busy: { http: 409, exit: 75, hint: 'another command works on it: try again when that has ended' },
  'image-not-found': { http: 404, exit: 66, hint: undefined },
  'image-in-use': { http: 409, exit: 75, hint: 'delete its sandboxes first, or use --force: they keep their disk' },
  'image-invalid': {
    http: 422,
    exit: 65,
    hint: 'the image was not made as the OCI specification asks: tell its publisher',
  },
  'image-too-large': { http: 422, exit: 65, hint: 'raise the limit in the configuration, if you trust the image' },
  'layer-invalid': {
    http: 422,
    exit: 65,
    hint: 'the image was not made as the OCI specification asks: tell its publisher',
  },
  'layer-hostile': { http: 422, exit: 65, hint: 'the image tries to leave its own folder: do not use it' },
  'digest-mismatch': { http: 502, exit: 74, hint: 'what came is not what was announced; nothing of it was kept' },
  'platform-not-found': { http: 404, exit: 66, hint: undefined },
  'registry-unreachable': { http: 502, exit: 69, hint: 'check the name and the network; what has come so far is kept' },
  'registry-failed': { http: 502, exit: 69, hint: 'try again: what has come so far is kept' },
  'registry-unauthorized': {
    http: 401,
    exit: 77,
    hint: 'log in with bandsox login, docker login or podman login, or give --username and --password-stdin',
  },
  'host-unsupported': { http: 500, exit: 69, hint: 'see what is missing: bandsox doctor' },
  'host-missing': { http: 500, exit: 69, hint: 'see what is missing: bandsox doctor' },
  'host-resource': { http: 500, exit: 71, hint: 'see what is missing: bandsox doctor' },
  'snapshot-damaged': { http: 500, exit: 74, hint: 'it cannot be restored any more: take another one, and delete it' },
  'snapshot-incompatible': { http: 409, exit: 69, hint: undefined },
  'snapshot-in-use': { http: 409, exit: 75, hint: undefined },
  'storage-unusable': { http: 500, exit: 73, hint: undefined },
  'storage-newer': { http: 500, exit: 69, hint: 'a newer BandSox has used this storage: install that one, or newer' },
  'storage-busy': { http: 503, exit: 75, hint: 'try again: other commands work on the same storage' },
  'name-taken': { http: 409, exit: 75, hint: 'choose another name, or leave --unique out' },
  'command-failed': { http: 500, exit: 71, hint: undefined },
  'artifact-damaged': { http: 500, exit: 74, hint: 'build it anew: npm run setup' },
  'vmm-failed': { http: 500, exit: 70, hint: 'see what the machine printed: bandsox logs ID' },
  'vmm-control': { http: 500, exit: 70, hint: 'see what the machine printed: bandsox logs ID' },
  'boot-failed': { http: 500, exit: 70, hint: 'see what the machine printed: bandsox logs ID' },
  'cid-in-use': { http: 409, exit: 75, hint: 'another VM of this host has it: try again' },
  'vsock-unavailable': { http: 500, exit: 69, hint: 'see what is missing: bandsox doctor' },
  'link-refused': { http: 502, exit: 69, hint: undefined },
  'link-lost': { http: 502, exit: 74, hint: undefined },
  'agent-unreachable': { http: 504, exit: 69, hint: 'see what the guest printed: bandsox logs ID' },
  'agent-incompatible': { http: 500, exit: 69, hint: 'create the sandbox anew: its agent is of another version' },
  'guest-protocol': {
    http: 502,
    exit: 76,
    hint: 'the guest broke the protocol; trust nothing in it: bandsox vm delete ID --force',
  },
  'guest-silent': { http: 504, exit: 75, hint: 'the guest may be overloaded: bandsox logs ID' },
  'output-too-large': { http: 413, exit: 73, hint: 'read the output as a stream, or raise maxOutputBytes' },
  'file-not-found': { http: 404, exit: 66, hint: undefined },
  'file-error': { http: 400, exit: 73, hint: undefined },
  'no-space': { http: 507, exit: 73, hint: undefined },
  'permission-denied': { http: 403, exit: 77, hint: undefined },
  'checksum-mismatch': { http: 500, exit: 74, hint: 'nothing was replaced: try again' },
  'command-not-found': { http: 400, exit: 127, hint: undefined },
  'command-not-executable': { http: 400, exit: 126, hint: undefined },
  'hook-failed': {
    http: 409,
    exit: 70,
    hint: "the sandbox's own program in /etc/bandsox/hooks refused: mend or remove it; nothing was changed",
  },
  timeout: { http: 504, exit: 124, hint: undefined },
  cancelled: { http: 499, exit: 130, hint: undefined },
  internal: { http: 500, exit: 70, hint: 'this is a defect of BandSox: please report it with the text above' },
} as const satisfies Record<string, { http: number; exit: number; hint: string | undefined }>

export type ErrorCode = keyof typeof errorTable

/** An error with a stable `code`. The message says what could not be done, to what, and the figures. */
export class BandSoxError extends Error {
  override readonly name: string = 'BandSoxError'
  readonly code: ErrorCode
  /** What to do about it, in one line. */
  readonly hint: string | undefined

  constructor(code: ErrorCode, message: string, options: { cause?: unknown; hint?: string } = {}) {
    super(message, options.cause === undefined ? undefined : { cause: options.cause })
    this.code = code
    this.hint = options.hint ?? errorTable[code].hint
  }
}

/** The text of anything thrown: `catch` yields `unknown`, and not only errors are thrown. */
export const messageOf = (thrown: unknown): string => (thrown instanceof Error ? thrown.message : String(thrown))

/** True for a system error of Node with this `code`, such as `ENOENT`. */
export const isSystemError = (thrown: unknown, code: string): boolean =>
  thrown instanceof Error && 'code' in thrown && thrown.code === code
