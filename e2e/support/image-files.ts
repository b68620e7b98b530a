/** What images have on the disk: for tests of commits. */
import { mkdir, readdir } from 'node:fs/promises'
import path from 'node:path'
import type { ImageInfo } from 'bandsox'
import type { TestStorage } from './storage.js'
import { runTool } from './test-tools.js'

const lastLayer = ({ folder: at }: TestStorage, { layers }: ImageInfo): string =>
  path.join(at, 'images/blobs', layers.at(-1)?.digest.slice(7) ?? '')

/** What a commit has put into the image's last layer. */
export async function layerOf(storage: TestStorage, image: ImageInfo): Promise<string[]> {
  const listed = await runTool(['tar', '--list', '--gzip', '--file', lastLayer(storage, image)])
  return listed.trimEnd().split('\n')
}

export const contentOf = (storage: TestStorage, image: ImageInfo, ...names: string[]): Promise<string> =>
  runTool(['tar', '--extract', '--to-stdout', '--gzip', '--file', lastLayer(storage, image), ...names])

/** Below the folder of images, by their kind. */
export async function namesOfImages(storage: string): Promise<Record<string, string[]>> {
  const found: Record<string, string[]> = {}
  const root = path.join(storage, 'images')
  await mkdir(root, { recursive: true })
  for (const kind of await readdir(root)) found[kind] = (await readdir(path.join(root, kind))).sort()
  return found
}
