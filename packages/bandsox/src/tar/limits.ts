/** What one entry of a tar may need besides its content. */

/** Extended headers, long names and sparse maps of one entry; Go's reader, which all engines share, stops there as well. */
export const MAX_EXTENSION_BYTES = 1024 * 1024
/** Linux: XATTR_SIZE_MAX; the names and values of one file. */
export const MAX_XATTR_BYTES = 65_536
