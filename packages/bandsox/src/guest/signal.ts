/** Names of signals as people write them, and as the protocol has them. No I/O. */
import { constants } from 'node:os'
import { signalNames } from '../wire/message.js'

/**
 * `SIGQUIT`, `QUIT` or `3`, as images write it.
 *
 * @returns undefined for none, and for one that the agent does not know, such as a real-time signal: SIGTERM is sent then.
 */
export function parseSignal(text: string): string | undefined {
  const byNumber = Object.entries(constants.signals).find(([, number]) => String(number) === text)?.[0]
  const name = byNumber ?? (text.startsWith('SIG') ? text : `SIG${text}`)
  return signalNames.includes(name) ? name : undefined
}
