/** Parser of the header WWW-Authenticate, with which a server says how to log in (RFC 9110, 11.6.1). No I/O. */

export interface Challenge {
  /** In lower case: `bearer`, `basic`. */
  scheme: string
  /** By name in lower case; the first of a repeated name counts. */
  parameters: Map<string, string>
}

/** Real ones have under 500 bytes. */
const MAX_LENGTH = 8192

const TOKEN = /[\w!#$%&'*+.^`|~-]+/y
/** Of schemes such as Negotiate, instead of parameters. */
const TOKEN68 = /[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))/y
const PARAMETER = /([\w!#$%&'*+.^`|~-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([\w!#$%&'*+.^`|~:/?=@-]+))/y
const SEPARATORS = /[\s,]*/y

/**
 * @param header A server may send the header more than once, and several challenges in one.
 * @returns What could be read: reading stops at the first thing that is no challenge.
 */
export function parseChallenges(header: string | string[] | undefined): Challenge[] {
  return [header ?? []].flat().flatMap((each) => parseOne(each.slice(0, MAX_LENGTH)))
}

function parseOne(text: string): Challenge[] {
  const challenges: Challenge[] = []
  let at = 0
  const take = (pattern: RegExp): RegExpExecArray | null => {
    pattern.lastIndex = at
    const match = pattern.exec(text)
    if (match !== null) at = pattern.lastIndex
    return match
  }
  for (take(SEPARATORS); at < text.length; take(SEPARATORS)) {
    // A parameter belongs to the challenge before it, and a name without `=` begins the next one.
    const last = challenges.at(-1)
    const parameter = last === undefined ? null : take(PARAMETER)
    if (parameter !== null && last !== undefined) {
      const [, name = '', quoted, plain] = parameter
      const key = name.toLowerCase()
      if (!last.parameters.has(key)) last.parameters.set(key, quoted?.replace(/\\(.)/g, '$1') ?? plain ?? '')
      continue
    }
    const scheme = take(TOKEN)
    if (scheme === null) break
    challenges.push({ scheme: scheme[0].toLowerCase(), parameters: new Map() })
    take(/\s*/y)
    take(TOKEN68)
  }
  return challenges
}
