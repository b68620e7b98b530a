/** Images for a host whose test needs none. */
import { BandSoxError } from '@bandsox/sdk'
import { ImageStore } from '../image/image-store.js'
import { LocalImages, type SandboxLayers } from '../sandbox/local-images.js'

/** Of no sandbox. */
export const noLayers: SandboxLayers = {
  find: async (sandbox) => {
    throw new BandSoxError('not-found', `there is no sandbox ${JSON.stringify(sandbox)}`)
  },
}

/** @param folder Where they would be. */
export const noImages = (folder = '/nonexistent'): LocalImages =>
  new LocalImages({
    store: new ImageStore(folder),
    settings: { configFile: undefined, credentialSources: { files: [], environment: {} }, proxy: {} },
    sandboxesByImage: async () => new Map(),
    layers: noLayers,
    debug: () => undefined,
    warn: () => undefined,
  })
