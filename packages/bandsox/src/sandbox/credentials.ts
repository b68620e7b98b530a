/** Credentials for registries: tried, kept, and forgotten again. */
import type { RegistryCredentials } from '@bandsox/sdk'
import { keyOf, storeCredentials } from '../image/source/registry/auth-file.js'
import { checkCredentials } from '../image/source/registry/check-credentials.js'
import { readConfiguration } from './configuration.js'
import type { ImageSettings } from './local-images.js'

export { eraseCredentials as logOut } from '../image/source/registry/auth-file.js'

/**
 * Keeps credentials that the registry takes.
 *
 * @param file Ours, of Docker's shape; mode 0600.
 * @throws `bad-request` for what is no registry; the codes of `checkCredentials`. Nothing was kept then.
 */
export async function logIn(
  file: string,
  registry: string,
  credentials: RegistryCredentials,
  { settings, debug, signal }: { settings: ImageSettings; debug: (message: string) => void; signal: AbortSignal },
): Promise<void> {
  const config = await readConfiguration(settings.configFile)
  keyOf(registry) // its error comes before anything is sent
  await checkCredentials({ registry, credentials, config, proxy: settings.proxy, debug, signal })
  await storeCredentials(file, registry, credentials)
}
