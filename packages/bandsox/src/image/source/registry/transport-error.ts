/** What a failed HTTP exchange means: which code it has, and a message that names the host and the first cause. No I/O. */
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { printable } from './printable.js'

/** The server was reached, and what it then sent, or did not send, is no reply. Codes of undici, and of its parser. */
const NO_REPLY = /^(UND_ERR_HEADERS_TIMEOUT|UND_ERR_HEADERS_OVERFLOW|HPE_)/
const TLS_DISTRUST = /CERT|SELF_SIGNED|UNABLE_TO_(GET|VERIFY)/
/** Worth another try at once; a name that does not exist, or a closed port, is not. */
const PASSING = /^(ECONNRESET|EPIPE|EAI_AGAIN|UND_ERR_SOCKET|UND_ERR_CLOSED)$/

export const isPassing = (error: unknown): boolean => PASSING.test(errorCode(error))

/**
 * @param configured The entry in the configuration of registries that holds for the host.
 * @returns `registry-failed` when the server was reached and sent what is no reply, or none in time; else `registry-unreachable`.
 */
export function transportError(host: string, error: unknown, configured: string): BandSoxError {
  const code = errorCode(error)
  if (NO_REPLY.test(code))
    return new BandSoxError('registry-failed', `${host} sends no reply: ${reasonOf(error)}`, { cause: error })
  const settings = configured === host ? '"ca" or "insecure"' : '"ca"' // who is insecure does not vouch for others
  const hint = `if you trust it, set ${settings} of ${configured} in the configuration of registries`
  return new BandSoxError('registry-unreachable', `cannot reach ${host}: ${reasonOf(error)}`, {
    cause: error,
    ...(TLS_DISTRUST.test(code) && { hint }),
  })
}

/** A reply that broke off, or fell silent, in the middle of its body. */
export function brokenBody(host: string, bytes: number, error: unknown): BandSoxError {
  const message = `${host} broke off after ${bytes} bytes: ${reasonOf(error)}`
  return new BandSoxError('registry-failed', message, { cause: error })
}

/** Where a host has several addresses, Node collects an error of each, and the collection has no message of its own. */
function reasonOf(error: unknown): string {
  const message = error instanceof AggregateError ? error.errors.map(messageOf).join(', ') : messageOf(error)
  // Those of OpenSSL end with a line break, and those about certificates have names in them that the server chose.
  return printable(message) || errorCode(error) || 'the connection failed'
}

function errorCode(error: unknown): string {
  return error instanceof Error && 'code' in error && typeof error.code === 'string' ? error.code : ''
}
