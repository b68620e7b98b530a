/** How end-to-end tests make and serve images, by other people's tools. Loaded by path, as internals.ts loads the product's. */
import type * as Images from '../../e2e/support/published-images.js'
import type * as Registry from '../../e2e/support/registry.js'
import type * as Tools from '../../e2e/support/test-tools.js'
import type * as Umoci from '../../e2e/support/umoci.js'

export type { ImageRecipe } from '../../e2e/support/image-recipe.js'
export type { PublishedImage } from '../../e2e/support/published-images.js'
export type { ImageLayout } from '../../e2e/support/umoci.js'

/** Seen from `bench/dist/image`. */
const load = async <T>(module: string): Promise<T> =>
  (await import(new URL(`../../../e2e/dist/support/${module}.js`, import.meta.url).href)) as T

export const { imageOf, push, testImagesFolder } = await load<typeof Images>('published-images')
export const { startRegistry } = await load<typeof Registry>('registry')
export const { missingTools, runTool } = await load<typeof Tools>('test-tools')
export const { addLayer, configureImage, umociUnpack } = await load<typeof Umoci>('umoci')
