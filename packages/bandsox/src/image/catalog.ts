/** Finds the image that a reference means, in the folder of images. */
import { join } from 'node:path'
import { BandSoxError } from '@bandsox/sdk'
import { type Image, loadImage } from './image.js'

/** The image that is made on this host, from its own busybox; nothing is downloaded for it. */
export const BASE_REFERENCE = 'bandsox/base'
export const BASE_FOLDER = 'bandsox-base'

const baseNames: readonly string[] = [BASE_REFERENCE, 'base']

/**
 * @param images Folder of images.
 * @throws `image-not-found` for any reference but that of the built-in image, and when that is not made yet.
 */
export async function resolveImage(images: string, reference: string): Promise<Image> {
  if (!baseNames.includes(reference)) {
    throw new BandSoxError(
      'image-not-found',
      `there is no image ${JSON.stringify(reference)}: the built-in ${BASE_REFERENCE} is the only one`,
      {
        hint: `leave the image out, or name ${BASE_REFERENCE}: images of registries are not supported`,
      },
    )
  }
  return loadImage(join(images, BASE_FOLDER))
}
