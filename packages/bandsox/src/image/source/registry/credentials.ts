/** Finds the credentials for a repository where `bandsox login`, `docker login` and `podman login` keep them. */
import { messageOf, type RegistryCredentials } from '@bandsox/sdk'
import { entryFor, readAuthFile, type Secret, secretOf } from './auth-file.js'
import { askHelper } from './credential-helper.js'

export interface CredentialSources {
  /**
   * Files in the order in which they are consulted: our own, `$DOCKER_CONFIG/config.json` (`~/.docker`), podman's
   * `$XDG_RUNTIME_DIR/containers/auth.json` and `~/.config/containers/auth.json`. Those that are not there are passed over.
   */
  files: string[]
  /** Environment of the helper programs, which are found in its `PATH`. */
  environment: NodeJS.ProcessEnv
}

export interface CredentialSearch {
  found: (Secret & { from: string }) | undefined
  /** Why some place could not be searched: a public image needs no credentials, and a private one needs to know. */
  problems: string[]
}

/** @throws `signal.reason`; a damaged file, or a helper that fails, is a problem in the result. */
export async function findCredentials(
  registry: string,
  repository: string,
  sources: CredentialSources,
  signal: AbortSignal,
): Promise<CredentialSearch> {
  const problems: string[] = []
  const noted = async <T>(place: string, work: () => Promise<T>): Promise<T | undefined> => {
    try {
      return await work()
    } catch (error) {
      signal.throwIfAborted()
      problems.push(`cannot use ${place}: ${messageOf(error)}`)
      return undefined
    }
  }
  for (const file of sources.files) {
    const content = await noted(file, () => readAuthFile(file))
    const helper = entryFor(content?.credHelpers, registry, repository) ?? content?.credsStore
    if (helper) {
      const program = `docker-credential-${helper}`
      const secret = await noted(program, () => askHelper(helper, registry, sources.environment, signal))
      if (secret !== undefined) return { found: { ...secret, from: program }, problems }
    }
    // The file itself is second: beside a helper, Docker leaves an entry without content, or an old one.
    const secret = secretOf(entryFor(content?.auths, registry, repository))
    if (secret !== undefined) return { found: { ...secret, from: file }, problems }
  }
  return { found: undefined, problems }
}

/** The result of a search for credentials that the caller has given. */
export const givenCredentials = (credentials: RegistryCredentials): CredentialSearch => ({
  found: { kind: 'password', ...credentials, from: 'what was given' },
  problems: [],
})

/** In words, for the message of a refusal. */
export function describeSearch({ found, problems }: CredentialSearch): string {
  const who = found?.kind === 'password' ? `as ${found.username}, with the password` : 'with the identity token'
  if (found !== undefined) return `asked ${who} from ${found.from}`
  return ['asked without credentials: none were found', ...problems].join('; ')
}
