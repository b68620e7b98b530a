/** Variables for a guest's commands, checked before anything is touched. */
import { BandSoxError } from '@bandsox/sdk'

/** Of all variables together: what the guest's kernel takes for a command, with room for the command's own. */
const MAX_ENV_BYTES = 1024 * 1024

/** @throws `bad-request`. */
export function checkedEnv(env: Record<string, string>): Record<string, string> {
  let bytes = 0
  for (const [key, value] of Object.entries(env)) {
    if (key === '' || /[=\0]/.test(key)) throw refuse(key, 'names that are not empty and hold no = and no NUL')
    if (typeof value !== 'string' || value.includes('\0')) throw refuse(key, 'values that are text without NUL')
    bytes += Buffer.byteLength(key) + Buffer.byteLength(value) + 2
  }
  if (bytes > MAX_ENV_BYTES) throw refuse(`${bytes} bytes`, `at most ${MAX_ENV_BYTES} bytes in all`)
  return env
}

const refuse = (value: string, allowed: string): BandSoxError =>
  new BandSoxError('bad-request', `env: ${JSON.stringify(value)} is not allowed; it must be ${allowed}`)
