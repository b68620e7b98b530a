/** Images for a host whose test needs none. */
import { ImageStore } from '../image/image-store.js'
import { LocalImages } from '../sandbox/local-images.js'

export const noImages = (): LocalImages =>
  new LocalImages({
    store: new ImageStore('/nonexistent'),
    settings: { configFile: undefined, credentialSources: { files: [], environment: {} }, proxy: {} },
    sandboxesByImage: async () => new Map(),
    debug: () => undefined,
    warn: () => undefined,
  })
