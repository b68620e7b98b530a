import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { PatternError, parsePattern, Selection, type Verdict } from './patterns.js'

interface Cases {
  patterns: { pattern: string; path: string; folder: boolean; matches: boolean }[]
  invalid: string[]
  selections: { include: string[]; exclude: string[]; tree: string[]; taken: string[] }[]
}

const file = new URL('../../../../../protocol/vectors-glob/cases.json', import.meta.url)
const cases = JSON.parse(readFileSync(file, 'utf8')) as Cases

describe('patterns', () => {
  it('name what the vectors say', () => {
    assert.ok(cases.patterns.length > 50)
    for (const { pattern, path, folder, matches } of cases.patterns)
      assert.equal(parsePattern(pattern).matches(path, folder), matches, `${pattern} on ${path}, folder: ${folder}`)
  })

  it('that are none are refused', () => {
    for (const text of [...cases.invalid, '\ud800', 'a\0', 'a'.repeat(5_000)])
      assert.throws(() => parsePattern(text), PatternError, JSON.stringify(text.slice(0, 40)))
    assert.throws(() => new Selection(['[']), hasCode('bad-request', /cannot include "\["/))
    assert.throws(() => new Selection([], ['!a']), hasCode('bad-request', /cannot exclude "!a"/))
  })

  it('choose and take away as the vectors say', () => {
    for (const { include, exclude, tree, taken } of cases.selections) {
      const selection = new Selection(include, exclude)
      const verdicts = new Map<string, Verdict>([['', selection.top]])
      const found = new Set<string>()
      for (const path of tree) {
        const name = path.replace(/\/$/, '')
        const above = verdicts.get(name.includes('/') ? name.slice(0, name.lastIndexOf('/')) : '') ?? 'out'
        const verdict = above === 'out' ? 'out' : selection.of(name, path !== name, above)
        verdicts.set(name, verdict)
        for (let at = path; verdict === 'in' && at !== ''; at = at.slice(0, at.replace(/\/$/, '').lastIndexOf('/') + 1))
          found.add(at)
      }
      assert.deepEqual(
        tree.filter((path) => found.has(path)),
        taken,
        JSON.stringify({ include, exclude }),
      )
    }
  })
})
