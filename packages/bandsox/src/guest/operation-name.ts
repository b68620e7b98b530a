/** Names of operations that outlive their connection: PROTOCOL.md section 5. */
import { randomBytes } from 'node:crypto'

/** Of agents that let a transfer go on over another connection. */
export const RESUME_CAPABILITY = 'resume'
/** Of agents that let a host come back to its command. */
export const ATTACH_CAPABILITY = 'attach'

/** Nobody else's, and nobody else can guess it: who knows it may take the operation over. */
export const newOperationName = (): string => randomBytes(18).toString('base64url')
