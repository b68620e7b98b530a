/** What a recipe of a test image says. */
import type { ImageLayout } from './umoci.js'

/** How one image is made. */
export interface ImageRecipe {
  readonly name: string
  /** Raised by whoever changes what the recipe makes, so that no cache holds the former. */
  readonly version: number
  /** Files outside the recipe that go into the image. */
  readonly ingredients: readonly string[]
  /**
   * Adds layers and configuration to an image that has none.
   *
   * @param workFolder Empty, and removed afterwards.
   */
  make(image: ImageLayout, workFolder: string): Promise<void>
}

export type PublishedImageName = 'debian-python' | 'busybox' | 'scratch'
