/** How much an image may ask of a host: what is above is refused, whoever published it. */

export interface ImageLimits {
  /** Bytes of all files of all layers, sparse files at their full size. */
  maxBytes: number
  /**
   * Entries of all layers, and folders that none of them names. One with long names, many attributes, a long sparse map, or a way
   * through long symbolic links counts as several: each takes some 300 bytes of memory, at most 1 KiB, and some microseconds.
   */
  maxEntries: number
  maxLayers: number
  /** Device nodes besides the harmless ones that every system has, such as /dev/null. */
  allowDevices: boolean
}

const GIB = 1024 ** 3

/** The largest images in wide use (machine learning with CUDA) have some 20 GiB and 300 000 entries. */
export const DEFAULT_LIMITS: ImageLimits = {
  maxBytes: 64 * GIB,
  maxEntries: 1_500_000,
  maxLayers: 256,
  allowDevices: false,
}

/** Linux: PATH_MAX and NAME_MAX. */
export const MAX_PATH_BYTES = 4096
export const MAX_NAME_BYTES = 255
