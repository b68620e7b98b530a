/** Compares versions of dotted numbers. No I/O. */

/**
 * @param {string} version Such as `7.2.22`.
 * @param {string} minimum Such as `7.2`.
 */
export function isAtLeast(version, minimum) {
  const have = version.split('.').map(Number)
  for (const [index, needed] of minimum.split('.').map(Number).entries()) {
    const part = have[index] ?? 0
    if (part !== needed) return part > needed
  }
  return true
}

/**
 * @param {string} text What a program prints about itself.
 * @returns {string | undefined} The first dotted number in it.
 */
export const findVersion = (text) => /\d+(?:\.\d+)+/.exec(text)?.[0]
