/**
 * Checks of what comes out of rows and JSON, for where there are thousands of it. Pure.
 *
 * A list of a thousand sandboxes holds nine thousand columns of JSON. For these, zod, which checks everything else here, takes
 * longer than all the rest of the list, and several times as long in a process that has just begun (docs/performance.md).
 */

/** @returns The value itself. @throws {@link Mismatch}. */
export type Check<T> = (value: unknown) => T
export type Checked<C> = C extends Check<infer T> ? T : never

/** Keys whose checks allow `undefined` may be missing. */
type ObjectOf<C> = {
  [K in keyof C as undefined extends Checked<C[K]> ? never : K]: Checked<C[K]>
} & {
  [K in keyof C as undefined extends Checked<C[K]> ? K : never]?: Checked<C[K]>
}

/** The message says where: `machine.vsock.backend: expected …`. */
export class Mismatch extends Error {
  within(key: string): Mismatch {
    const separator = /^[\w.-]+: /.test(this.message) ? '.' : ': '
    return new Mismatch(`${key}${separator}${this.message}`)
  }
}

const within = (key: string, error: unknown): unknown => (error instanceof Mismatch ? error.within(key) : error)

export const text: Check<string> = (value) => {
  if (typeof value === 'string') return value
  throw new Mismatch('expected text')
}

export const number: Check<number> = (value) => {
  if (typeof value === 'number') return value
  throw new Mismatch('expected a number')
}

export const boolean: Check<boolean> = (value) => {
  if (typeof value === 'boolean') return value
  throw new Mismatch('expected true or false')
}

export function oneOf<const T extends string>(...allowed: readonly T[]): Check<T> {
  return (value) => {
    if ((allowed as readonly unknown[]).includes(value)) return value as T
    throw new Mismatch(`expected one of ${allowed.join(', ')}`)
  }
}

export const nullable =
  <T>(check: Check<T>): Check<T | null> =>
  (value) =>
    value === null ? null : check(value)

export const optional =
  <T>(check: Check<T>): Check<T | undefined> =>
  (value) =>
    value === undefined ? undefined : check(value)

export function listOf<T>(check: Check<T>): Check<T[]> {
  return (value) => {
    if (!Array.isArray(value)) throw new Mismatch('expected a list')
    return value.map((each: unknown) => check(each))
  }
}

/** An object with any keys. */
export function mapOf<T>(check: Check<T>): Check<Record<string, T>> {
  return (value) => {
    const given = requireObject(value)
    for (const key of Object.keys(given)) {
      try {
        check(given[key])
      } catch (error) {
        throw within(key, error)
      }
    }
    return given as Record<string, T>
  }
}

/** Other keys than those are left alone. */
export function object<C extends Record<string, Check<unknown>>>(checks: C): Check<ObjectOf<C>> {
  const entries = Object.entries(checks)
  return (value) => {
    const given = requireObject(value)
    for (const [key, check] of entries) {
      try {
        check(given[key])
      } catch (error) {
        throw within(key, error)
      }
    }
    return given as ObjectOf<C>
  }
}

/** A text of JSON; what is in it is returned. */
export function json<T>(check: Check<T>): Check<T> {
  return (value) => {
    const given = text(value)
    let parsed: unknown
    try {
      parsed = JSON.parse(given)
    } catch (error) {
      throw new Mismatch('expected JSON', { cause: error })
    }
    return check(parsed)
  }
}

/** For texts of which many are the same. What is returned is shared: nobody may change it. */
export function remembered<T extends object>(check: Check<T>): Check<Readonly<T>> {
  const known = new Map<unknown, T>()
  return (value) => {
    const found = known.get(value)
    if (found !== undefined) return found
    const checked = check(value)
    if (known.size === MAX_REMEMBERED) known.clear()
    known.set(value, checked)
    return checked
  }
}
/** More different ones than images on any host. */
const MAX_REMEMBERED = 256

export const anything: Check<unknown> = (value) => value

function requireObject(value: unknown): Record<string, unknown> {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Record<string, unknown>
  throw new Mismatch('expected an object')
}
