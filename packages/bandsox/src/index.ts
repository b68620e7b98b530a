/** The library: sandboxes of this host. */
import type { BandSox } from '@bandsox/sdk'
import { imageSettings, readConfig } from './config.js'
import { type InitializedHost, type InitOptions, initHost as initThisHost } from './sandbox/init/init-host.js'
import { LocalBandSox, type OpenOptions } from './sandbox/local-bandsox.js'

export * from '@bandsox/sdk'
export type { InitEvent, InitializedHost, InitOptions, InitStep } from './sandbox/init/init-host.js'
export type { OpenOptions } from './sandbox/local-bandsox.js'
export { type PrepareEvent, prepareHost } from './sandbox/prepare.js'

/** Opens this host's sandboxes. Any number of processes may do so at once. */
export async function openBandSox(options: OpenOptions = {}): Promise<BandSox> {
  const config = readConfig(process.env, options)
  const { debug, info, warn = (message: string) => process.emitWarning(message, 'BandSoxWarning') } = options
  return await LocalBandSox.open({
    ...config,
    images: imageSettings(config),
    warn,
    ...(debug !== undefined && { debug }),
    ...(info !== undefined && { info }),
  })
}

/**
 * Gets what this host needs, as `bandsox init` does: Firecracker, a guest kernel, the built-in image. What is there is left alone.
 *
 * @param options `storage` as for {@link openBandSox}.
 * @throws `file-not-found`, `host-missing`, `checksum-mismatch` and others, each with a hint of what to do; `signal.reason`.
 */
export async function initHost(options: InitOptions & { storage?: string } = {}): Promise<InitializedHost> {
  const { storage, ...what } = options
  return await initThisHost(readConfig(process.env, storage === undefined ? {} : { storage }), what)
}
