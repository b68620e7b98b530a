/**
 * Which files of a folder a copy takes: docs/files.md, "Patterns". The agent does the same in Go, for copies out of the guest, and
 * protocol/vectors-glob holds what both must say. No library is used, as none would agree with the Go side on every character; and
 * those that make a regular expression of a pattern take very long for some names.
 */
import { BandSoxError } from '@bandsox/sdk'

const MAX_PATTERN_BYTES = 4_096

/** What one character of a name may be; `star`: any number of any. */
type Token = 'star' | ((character: string) => boolean)
/** One name; `star`: any number of any. */
type Segment = 'star' | readonly Token[]

export interface Pattern {
  matches(path: string, isFolder: boolean): boolean
}

/** What becomes of a file: left out with all below it; a folder taken only for what is below; taken, with all below it. */
export type Verdict = 'out' | 'maybe' | 'in'

/** `include` chooses, `exclude` takes away. */
export class Selection {
  readonly #include: Pattern[]
  readonly #exclude: Pattern[]

  /** @throws `bad-request` for a pattern that is none. */
  constructor(include: readonly string[] = [], exclude: readonly string[] = []) {
    this.#include = include.map((text) => parsed(text, 'include'))
    this.#exclude = exclude.map((text) => parsed(text, 'exclude'))
  }

  /** On the copied folder itself, which is always taken. */
  get top(): Verdict {
    return this.#include.length === 0 ? 'in' : 'maybe'
  }

  /** @param path Below the copied folder. @param above The verdict on the folder that it is in. */
  of(path: string, isFolder: boolean, above: Verdict): Verdict {
    if (this.#exclude.some((pattern) => pattern.matches(path, isFolder))) return 'out'
    if (above === 'in' || this.#include.some((pattern) => pattern.matches(path, isFolder))) return 'in'
    return isFolder ? 'maybe' : 'out'
  }
}

function parsed(text: string, what: string): Pattern {
  try {
    return parsePattern(text)
  } catch (error) {
    if (!(error instanceof PatternError)) throw error
    throw new BandSoxError('bad-request', `cannot ${what} ${JSON.stringify(text.slice(0, 200))}: ${error.message}`)
  }
}

export class PatternError extends Error {}

/** @throws PatternError. */
export function parsePattern(text: string): Pattern {
  if (text === '') throw new PatternError('it is empty')
  if (Buffer.byteLength(text) > MAX_PATTERN_BYTES)
    throw new PatternError(`it is longer than ${MAX_PATTERN_BYTES} bytes`)
  if (!text.isWellFormed() || text.includes('\0')) throw new PatternError('it is not UTF-8 without NUL')
  if (text.startsWith('!'))
    throw new PatternError('it begins with !, which is not known here: write \\! for a name that does')
  const isAnchored = text.startsWith('/')
  const isFolderOnly = text.slice(isAnchored ? 1 : 0).endsWith('/')
  const parts = text.slice(isAnchored ? 1 : 0, isFolderOnly ? -1 : undefined).split('/')
  if (parts.some((part) => ['', '.', '..'].includes(part)))
    throw new PatternError('a part of it between slashes is empty, . or ..')
  const segments: Segment[] = parts.map((part) => (part === '**' ? 'star' : tokensOf(part)))
  if (parts.length === 1 && !isAnchored) segments.unshift('star')
  // At the end it means what is inside, at least one name: a/** is not a itself.
  if (parts.at(-1) === '**') segments.push(['star'])
  return {
    matches: (path, isFolder) => (isFolder || !isFolderOnly) && matchSegments(segments, path.split('/')),
  }
}

const matchSegments = (segments: readonly Segment[], names: readonly string[]): boolean =>
  matchRow(segments, names, (segment, name) => matchRow(segment, [...name], (token, character) => token(character)))

/** Whether a row of items fits a row of patterns. Goes back to the last star only, which is enough. */
function matchRow<P extends object, T>(
  patterns: readonly (P | 'star')[],
  items: readonly T[],
  fits: (pattern: P, item: T) => boolean,
): boolean {
  let [at, taken, lastStar, mark] = [0, 0, -1, 0]
  while (taken < items.length) {
    const pattern = patterns[at]
    if (pattern === 'star') {
      lastStar = at++
      mark = taken
    } else if (pattern !== undefined && fits(pattern, items[taken] as T)) {
      at++
      taken++
    } else if (lastStar >= 0) {
      taken = ++mark
      at = lastStar + 1
    } else return false
  }
  while (patterns[at] === 'star') at++
  return at === patterns.length
}

/** @throws PatternError. */
function tokensOf(part: string): Token[] {
  const characters = [...part]
  const tokens: Token[] = []
  for (let index = 0; index < characters.length; index++) {
    const character = characters[index] ?? ''
    if (character === '\\') {
      const next = characters[++index]
      if (next === undefined) throw new PatternError('a \\ stands at the end of a name')
      tokens.push((each) => each === next)
    } else if (character === '*') {
      if (tokens.at(-1) !== 'star') tokens.push('star')
    } else if (character === '?') tokens.push(() => true)
    else if (character === '[') {
      const { token, end } = classAt(characters, index + 1)
      tokens.push(token)
      index = end
    } else tokens.push((each) => each === character)
  }
  return tokens
}

/** Reads what follows a `[`. @returns The place of its `]`, too. @throws PatternError. */
function classAt(characters: readonly string[], start: number): { token: Token; end: number } {
  let index = start
  const isNegated = ['!', '^'].includes(characters[index] ?? '')
  if (isNegated) index++
  const take = (): number => {
    if (characters[index] === '\\') index++
    const code = characters[index++]?.codePointAt(0)
    if (code === undefined) throw new PatternError('a [ has no ]: write \\[ for the character')
    return code
  }
  const ranges: [number, number][] = []
  while (characters[index] !== ']') {
    const low = take()
    let high = low
    if (characters[index] === '-' && index + 1 < characters.length && characters[index + 1] !== ']') {
      index++
      high = take()
    }
    if (low > high) throw new PatternError('a range in [ ] goes backwards')
    ranges.push([low, high])
  }
  if (ranges.length === 0) throw new PatternError('a [ ] is empty: write \\] for the character')
  const token = (character: string) => {
    const code = character.codePointAt(0) ?? 0
    return ranges.some(([low, high]) => code >= low && code <= high) !== isNegated
  }
  return { token, end: index }
}
