/** An OCI image layout, in a folder or in a tar (`oci-archive`). See OCI image-spec, image-layout.md. */
import { BandSoxError } from '@bandsox/sdk'
import { sha256 } from '../digest.js'
import { type Index, mediaTypes, parseDocument } from '../manifest.js'
import { type ImageFiles, readDocumentFile } from './files.js'
import { isName, listNames } from './names.js'
import type { Descriptor, Document, ImageSource } from './source.js'

const INDEX = 'index.json'
const MARK = 'oci-layout'
const NAME_ANNOTATIONS = ['org.opencontainers.image.ref.name', 'io.containerd.image.name'] as const

/** True for the files of an image layout. An index.json alone may be anybody's. */
export const isLayout = async (files: ImageFiles): Promise<boolean> =>
  (await files.sizeOf(INDEX)) !== undefined && (await files.sizeOf(MARK)) !== undefined

/**
 * @param tag Which image, when there are several.
 * @throws `image-invalid`, `image-not-found` with the tags that there are.
 */
export async function openLayout(
  files: ImageFiles,
  tag: string | undefined,
): Promise<ImageSource & { names: string[] }> {
  const bytes = await readDocumentFile(files, INDEX)
  const document: Document = { bytes, mediaType: mediaTypes.ociIndex, digest: sha256(bytes) }
  const parsed = parseDocument(document)
  if (parsed.kind !== 'index') throw new BandSoxError('image-invalid', `${INDEX} in ${files.name} is no index`)
  const chosen = choose(parsed.index, tag, files.name)
  const read = async ({ digest, mediaType }: Descriptor): Promise<Document> => {
    const found = await readDocumentFile(files, blobPath(digest))
    if (sha256(found) === digest) return { bytes: found, mediaType, digest }
    throw new BandSoxError('digest-mismatch', `${blobPath(digest)} in ${files.name} has the digest ${sha256(found)}`)
  }
  return {
    names: chosen === undefined ? [] : namesOf(chosen),
    // Without names, several manifests are one image for several platforms.
    root: async () => (chosen === undefined ? document : await read(chosen)),
    manifest: read,
    async openBlob({ digest }, offset) {
      if ((await files.sizeOf(blobPath(digest))) === undefined) {
        throw new BandSoxError('image-invalid', `${files.name} holds no ${blobPath(digest)}`)
      }
      return { stream: files.open(blobPath(digest), offset), startsAt: offset }
    },
    close: () => files.close(),
  }
}

type IndexEntry = Index['manifests'][number]

function choose(index: Index, tag: string | undefined, name: string): IndexEntry | undefined {
  const [only, second] = index.manifests
  if (only === undefined) throw new BandSoxError('image-invalid', `${name} holds no image`)
  const named = index.manifests.filter((each) => namesOf(each).length > 0)
  if (tag !== undefined) {
    const found = named.find((each) => namesOf(each).some((given) => given === tag || given.endsWith(`:${tag}`)))
    if (found !== undefined) return found
    throw new BandSoxError('image-not-found', `${name} holds no image ${JSON.stringify(tag)}${listed(named)}`)
  }
  if (second === undefined) return only
  if (named.length === 0) return undefined
  throw new BandSoxError('image-not-found', `${name} holds ${index.manifests.length} images${listed(named)}`, {
    hint: 'name one of them, behind a colon',
  })
}

const listed = (named: IndexEntry[]): string =>
  named.length === 0 ? ', and none has a name' : `: ${listNames(named.flatMap(namesOf))}`

const namesOf = ({ annotations }: IndexEntry): string[] =>
  NAME_ANNOTATIONS.flatMap((key) => annotations?.[key] ?? []).filter(isName)

const blobPath = (digest: string): string => `blobs/${digest.replace(':', '/')}`
