/** The library: sandboxes of this host. */
import type { BandSox } from '@bandsox/sdk'
import { imageSettings, readConfig } from './config.js'
import { LocalBandSox, type OpenOptions } from './sandbox/local-bandsox.js'

export * from '@bandsox/sdk'
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
