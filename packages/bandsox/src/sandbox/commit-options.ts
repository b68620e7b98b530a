/** What may be asked of `image commit`, checked before anything is touched. */
import { BandSoxError, type CommitOptions } from '@bandsox/sdk'
import type { ImageChanges } from '../image/commit.js'
import { checkedEnv } from './environment.js'

/** Of a text, and of all words of a command: far more than anybody writes, and far less than a configuration may have. */
const MAX_TEXT_BYTES = 16 * 1024

/** @throws `bad-request` naming the option. */
export function checkedChanges(options: CommitOptions): ImageChanges {
  const { message, author, env, cmd, entrypoint, user, workingDir } = options
  for (const [option, text] of Object.entries({ message, author, user, workingDir }))
    if (text !== undefined) checkText(option, text)
  for (const [option, words] of Object.entries({ cmd, entrypoint }))
    if (words !== undefined) checkText(option, words.join(' '))
  if (workingDir !== undefined && !workingDir.startsWith('/'))
    throw new BandSoxError('bad-request', `workingDir: ${JSON.stringify(workingDir)} is no absolute path`)
  return { message, author, env: checkedEnv(env ?? {}), cmd, entrypoint, user, workingDir }
}

function checkText(option: string, text: string): void {
  if (text.includes('\0')) throw new BandSoxError('bad-request', `${option}: it must hold no NUL`)
  const bytes = Buffer.byteLength(text)
  if (bytes > MAX_TEXT_BYTES)
    throw new BandSoxError('bad-request', `${option}: it has ${bytes} bytes, and at most ${MAX_TEXT_BYTES} are allowed`)
}
