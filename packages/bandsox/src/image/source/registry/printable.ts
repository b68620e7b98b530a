/** Makes text of a server fit for a message: one short line, in which nothing moves the cursor of a terminal. No I/O. */

/** Characters: enough for a sentence. */
const MAX_LENGTH = 200

export function printable(text: string): string {
  // Control characters, and those that change the direction of writing.
  const line = text.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\s]+/gu, ' ').trim()
  return line.length > MAX_LENGTH ? `${line.slice(0, MAX_LENGTH)}…` : line
}
