/**
 * Asks a credential helper program of Docker for the credentials of a registry.
 *
 * @see https://github.com/docker/docker-credential-helpers, "Development"
 */
import { BandSoxError } from '@bandsox/sdk'
import * as z from 'zod'
import { runCommand } from '../../../process/run.js'
import { type Secret, serverKey } from './auth-file.js'

/** The helpers of cloud providers ask a server themselves. */
const HELPER_TIMEOUT_MS = 30_000

/** The user name that tells that the secret is an identity token. */
const TOKEN_USERNAME = '<token>'

/** The wording is part of the helpers' protocol: errors.go, errCredentialsNotFoundMessage. */
const NOT_FOUND = /credentials not found/i

const replySchema = z.object({ Username: z.string(), Secret: z.string() })

/**
 * @param name `NAME` of the program `docker-credential-NAME`, which is looked for in the `PATH` of `environment`.
 * @returns undefined when the helper has none.
 * @throws `host-missing`, `command-failed`, `timeout`, `bad-request` for a name with other characters, or `signal.reason`.
 */
export async function askHelper(
  name: string,
  registry: string,
  environment: NodeJS.ProcessEnv,
  signal: AbortSignal,
): Promise<Secret | undefined> {
  // It comes from a file, and must not lead to another folder.
  if (!/^[\w.-]+$/.test(name)) throw new BandSoxError('bad-request', `${JSON.stringify(name)} is no credential helper`)
  const program = `docker-credential-${name}`
  let stdout: string
  try {
    const options = { input: serverKey(registry), env: environment, signal, timeoutMs: HELPER_TIMEOUT_MS, quote }
    ;({ stdout } = await runCommand([program, 'get'], options))
  } catch (error) {
    if (error instanceof BandSoxError && NOT_FOUND.test(error.message)) return undefined
    throw error
  }
  const reply = parseReply(program, stdout)
  if (reply.Secret === '') return undefined
  if (reply.Username === TOKEN_USERNAME) return { kind: 'identity-token', token: reply.Secret }
  return { kind: 'password', username: reply.Username, password: reply.Secret }
}

/** Helpers print errors to standard output, where the secret would stand: only the one that is known is taken from there. */
function quote(stdout: string, stderr: string): string {
  const [notFound] = NOT_FOUND.exec(stdout) ?? []
  return notFound ?? (stderr || 'its standard output is not shown, since there may be a secret in it')
}

/** What it printed is not quoted: there may be a secret in it. */
function parseReply(program: string, stdout: string): z.infer<typeof replySchema> {
  let json: unknown
  try {
    json = JSON.parse(stdout)
  } catch {
    // The parser's own message has a piece of the text in it.
    throw new BandSoxError('command-failed', `${program} printed no JSON`)
  }
  const parsed = replySchema.safeParse(json)
  if (parsed.success) return parsed.data
  throw new BandSoxError('command-failed', `${program} printed no Username and Secret`)
}
