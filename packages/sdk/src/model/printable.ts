/** Text that others wrote, made fit for a terminal. No I/O. */

/**
 * Control characters, which a terminal obeys (C1's U+009B is a whole escape), and format characters, by some of which one name
 * looks like another (Unicode TR 36). New lines and tabs are left.
 */
const OBEYED = /(?![\n\t])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu

/** For messages, which may have several lines. */
export const printable = (text: string): string => text.replace(OBEYED, '\u{fffd}')

/** For names and values, which have one. */
export const printableLine = (text: string): string => printable(text).replace(/[\n\t]/g, '\u{fffd}')
