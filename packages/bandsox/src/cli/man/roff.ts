/** Text as roff wants it, with the macros of man(7). Pure. */

const escapes: Record<string, string> = {
  '\\': '\\(rs',
  // A plain one is a hyphen, which may become another character, and cannot be pasted into a shell.
  '-': '\\-',
  "'": '\\(aq',
  '`': '\\(ga',
  '^': '\\(ha',
  '~': '\\(ti',
  '"': '\\(dq',
}

/**
 * Text that is printed as it is, whatever is in it, in a line of its own or within one.
 *
 * What is not ASCII is written by its number, so that a page is read right whatever the reader's locale.
 */
export function escaped(text: string): string {
  const plain = text
    .replace(/[\\\-'`^~"]/g, (character) => escapes[character] ?? character)
    .replace(/[^\n\x20-\x7e]/gu, (character) => {
      const code = character.codePointAt(0)?.toString(16).toUpperCase().padStart(4, '0')
      return `\\[u${code}]`
    })
  return plain.replace(/^\./gm, '\\&.') // at the beginning of a line it would be a request
}

export const bold = (text: string): string => `\\fB${escaped(text)}\\fR`
export const italic = (text: string): string => `\\fI${escaped(text)}\\fR`

export const heading = (title: string): string => `.SH "${escaped(title)}"`

/** An indented text with what it is about before it, both escaped already. */
export const tagged = (tag: string, text: string): string => `.TP\n${tag}\n${text}`

/** `.nf` leaves its lines as they are. */
const example = (lines: readonly string[]): string =>
  ['.PP', '.RS', '.nf', ...lines.map((line) => escaped(line)), '.fi', '.RE'].join('\n')

/** Paragraphs, parted by empty lines; one whose lines are indented is an example. */
export function paragraphs(text: string): string {
  return text
    .split(/\n{2,}/)
    .map((each) => each.split('\n'))
    .map((lines, index) => {
      if (lines.every((line) => line.startsWith('  '))) return example(lines.map((line) => line.trim()))
      return `${index === 0 ? '' : '.PP\n'}${escaped(lines.map((line) => line.trim()).join('\n'))}`
    })
    .join('\n')
}
