/** Failures of this host's file system in a copy, by their meaning, with the entry's name. */
import { BandSoxError, isSystemError, messageOf } from '@bandsox/sdk'
import { type ByteString, readable } from '../../tar/tar-entry.js'

export function hostError(error: unknown, attempt: string): BandSoxError {
  if (error instanceof BandSoxError) return error
  const code = isSystemError(error, 'ENOENT')
    ? 'file-not-found'
    : isSystemError(error, 'EACCES') || isSystemError(error, 'EPERM')
      ? 'permission-denied'
      : isSystemError(error, 'ENOSPC') || isSystemError(error, 'EDQUOT')
        ? 'no-space'
        : 'file-error'
  return new BandSoxError(code, `cannot ${attempt} on the host: ${messageOf(error)}`, { cause: error })
}

/** Bytes of a path, as text that may be shown. */
export const shown = (path: ByteString): string => (path === '' ? 'the copied file itself' : readable(path))
