/** The names of the sandboxes and images in a storage folder, to be chosen from. Reads, and sets nothing right. */
import { ImageStore } from '../image/image-store.js'
import { formatReference, parseReference } from '../image/source/reference.js'
import { readNames, readSnapshotNames } from '../store/read-names.js'
import { readConfiguration } from './configuration.js'
import { storageFolders } from './storage-folders.js'

export interface KnownName {
  value: string
  description: string
  /** Its canonical form, where that is another. */
  inFull?: string
}

const ID_DIGITS = 12

export function knownNames({ storage, configFile }: { storage: string; configFile: string }) {
  return {
    /** Names and ids. */
    async sandboxes(): Promise<KnownName[]> {
      const names: KnownName[] = []
      const ids: KnownName[] = []
      for (const { id, name, state, image } of await readNames(storage)) {
        const about = `${state}, ${image}`
        if (name !== null) names.push({ value: name, description: about })
        ids.push({ value: id, description: name === null ? about : `${name}, ${about}` })
      }
      return [...names, ...ids]
    },
    /** Names and ids. */
    async snapshots(): Promise<KnownName[]> {
      const rows = await readSnapshotNames(storage)
      return [
        ...rows.flatMap(({ id, name }) => (name === null ? [] : [{ value: name, description: id }])),
        ...rows.map(({ id, name, sandbox }) => ({ value: id, description: name ?? `of ${sandbox}` })),
      ]
    },
    /** References, as short as they may be written, and ids of images without one. */
    async images(): Promise<KnownName[]> {
      const store = new ImageStore(storageFolders(storage).images)
      const [references, images] = await Promise.all([store.references(), store.images()])
      const { shortNameRegistry } = await readConfiguration(configFile)
      const isNamed = new Set(references.map(({ image }) => image))
      const unnamed = images.filter(({ id }) => !isNamed.has(id))
      return [
        ...references.map(({ reference, image }) => {
          const value = shortestReference(reference, shortNameRegistry)
          return { value, description: shortId(image), ...(value !== reference && { inFull: reference }) }
        }),
        ...unnamed.map(({ id, platform }) => ({ value: shortId(id), description: `no reference, ${platform}` })),
      ]
    },
  }
}

const shortId = (id: string): string => id.replace(/^sha256:/, '').slice(0, ID_DIGITS)

/** @returns The shortest ending of the reference that means the same here; its tag stays, as it tells images apart. */
function shortestReference(reference: string, shortNameRegistry: string): string {
  const parts = reference.split('/')
  for (let index = parts.length - 1; index > 0; index--) {
    const ending = parts.slice(index).join('/')
    if (meaning(ending, shortNameRegistry) === reference) return ending
  }
  return reference
}

function meaning(text: string, shortNameRegistry: string): string | undefined {
  try {
    return formatReference(parseReference(text, { shortNameRegistry }))
  } catch {
    return undefined // an ending need not be a reference
  }
}
