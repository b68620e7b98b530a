/** Checks for `assert.rejects` and `assert.throws`: the error must have the named code, since a bug throws as well. */
import assert from 'node:assert/strict'
import { BandSoxError, type ErrorCode } from '@bandsox/sdk'

export function hasCode(code: ErrorCode, message: RegExp = /./): (error: unknown) => true {
  return (error) => {
    assert.ok(
      error instanceof BandSoxError,
      `not an error of ours: ${error instanceof Error ? error.stack : String(error)}`,
    )
    assert.equal(error.code, code, error.message)
    assert.match(error.message, message)
    return true
  }
}
