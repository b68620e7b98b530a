/** The named violations of protocol/PROTOCOL.md section 1. */
export type ViolationName =
  | 'frame-kind-unknown'
  | 'frame-empty'
  | 'frame-too-large'
  | 'frame-truncated'
  | 'message-not-utf8'
  | 'message-too-deep'
  | 'message-not-json'
  | 'message-not-object'
  | 'message-type-unknown'
  | 'message-invalid'

/** A peer, or we ourselves, left the protocol. Callers wrap it in an error of ours that says whose guest it was. */
export class ProtocolError extends Error {
  override readonly name = 'ProtocolError'
  readonly violation: ViolationName

  constructor(violation: ViolationName, message: string, options?: ErrorOptions) {
    super(message, options)
    this.violation = violation
  }
}
