/** Images as others publish them: made once by other people's tools, kept in a cache, pushed to a registry by skopeo. */
import { createHash } from 'node:crypto'
import { mkdir, readFile, rm } from 'node:fs/promises'
import path from 'node:path'
import { publishDirectory, removeAbandoned } from 'bandsox/internal/artifact/publish.js'
import { busyboxImage } from './busybox-image.js'
import { debianPythonImage } from './debian-python-image.js'
import { withFileLock } from './file-lock.js'
import type { ImageRecipe, PublishedImageName } from './image-recipe.js'
import type { RegistryCredentials } from './registry.js'
import { scratchImage } from './scratch-image.js'
import { runTool } from './test-tools.js'
import { createImage, type ImageLayout, removeUnused } from './umoci.js'

export interface PublishedImage extends ImageLayout {
  readonly name: string
}

export type { PublishedImageName } from './image-recipe.js'

const { cacheFolder: userCacheFolder } = (await import(
  new URL('../../../scripts/lib/paths.mjs', import.meta.url).href
)) as { cacheFolder(env: NodeJS.ProcessEnv): string }

/** Where tests keep the images from run to run: beside the storage that scripts/test.mjs prepares. */
export const testImagesFolder = path.join(userCacheFolder(process.env), 'test-images')

const TAG = 'latest'

const recipes: Record<PublishedImageName, ImageRecipe> = {
  'debian-python': debianPythonImage,
  busybox: busyboxImage,
  scratch: scratchImage,
}

/**
 * Gives an image from the cache, or makes it. Of several processes that want it, one makes it and the others wait.
 *
 * @param cacheFolder Made where it is not there.
 */
export const publishedImage = (name: PublishedImageName, cacheFolder: string): Promise<PublishedImage> =>
  imageOf(recipes[name], cacheFolder)

/** The same for a recipe of somebody else. */
export async function imageOf(recipe: ImageRecipe, cacheFolder: string): Promise<PublishedImage> {
  const key = await keyOf(recipe)
  await mkdir(cacheFolder, { recursive: true })
  return withFileLock(path.join(cacheFolder, `${recipe.name}.lock`), async () => {
    const finished = path.join(cacheFolder, key)
    const image: PublishedImage = { name: recipe.name, layout: path.join(finished, 'layout'), tag: TAG }
    if (await isFinished(image)) return image
    await removeAbandoned(cacheFolder)
    await publishDirectory(
      cacheFolder,
      async (unfinished) => {
        await makeImage(recipe, unfinished)
        return key
      },
      () => isFinished(image),
    )
    return image
  })
}

/** Pushes an image by skopeo, as `<address>/<name>:<tag>`, and returns that reference. */
export async function push(
  image: PublishedImage,
  registry: { address: string; credentials?: RegistryCredentials },
): Promise<string> {
  const reference = `${registry.address}/${image.name}:${image.tag}`
  await runTool([
    ...['skopeo', 'copy', '--quiet', '--dest-tls-verify=false', ...credentialOptions('--dest', registry.credentials)],
    ...[`oci:${image.layout}:${image.tag}`, `docker://${reference}`],
  ])
  return reference
}

/** Copies an image from a registry into a new layout by skopeo. */
export async function copyBack(
  reference: string,
  image: ImageLayout,
  credentials?: RegistryCredentials,
): Promise<void> {
  await runTool([
    ...['skopeo', 'copy', '--quiet', '--src-tls-verify=false', ...credentialOptions('--src', credentials)],
    ...[`docker://${reference}`, `oci:${image.layout}:${image.tag}`],
  ])
}

/** `--no-creds` where there are none: not those that the user of this host has logged in with. */
const credentialOptions = (side: '--src' | '--dest', credentials: RegistryCredentials | undefined): string[] =>
  credentials === undefined ? [`${side}-no-creds`] : [`${side}-creds`, `${credentials.user}:${credentials.password}`]

async function makeImage(recipe: ImageRecipe, folder: string): Promise<void> {
  const image = { layout: path.join(folder, 'layout'), tag: TAG }
  const workFolder = path.join(folder, 'work')
  const umask = process.umask(0o022) // another would be in the modes of the image's files
  try {
    await mkdir(workFolder)
    await createImage(image)
    await recipe.make(image, workFolder)
    await removeUnused(image)
    await rm(workFolder, { recursive: true })
  } finally {
    process.umask(umask)
  }
}

async function keyOf({ name, version, ingredients }: ImageRecipe): Promise<string> {
  if (ingredients.length === 0) return `${name}-${version}`
  const digest = createHash('sha256')
  for (const file of ingredients) digest.update(await readFile(file))
  return `${name}-${version}-${digest.digest('hex').slice(0, 16)}`
}

/** The folder appears whole under its name; a lost index tells of one that somebody has emptied. */
const isFinished = async ({ layout }: ImageLayout): Promise<boolean> =>
  readFile(path.join(layout, 'index.json')).then(
    () => true,
    () => false,
  )
