/** The names that an archive gives its images: untrusted text that messages quote. No I/O. */

const MAX_LENGTH = 1024
const MAX_LISTED = 20

/** False for what is too long, or would move the cursor of a terminal. */
export const isName = (text: string): boolean =>
  text.length <= MAX_LENGTH && /^[^\p{Cc}\p{Cf}\p{Zl}\p{Zp}]+$/u.test(text)

/** The first of them, for a message. */
export function listNames(names: readonly string[]): string {
  const left = names.length - MAX_LISTED
  return `${names.slice(0, MAX_LISTED).join(', ')}${left > 0 ? ` and ${left} more` : ''}`
}
