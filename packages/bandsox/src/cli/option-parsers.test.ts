import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { InvalidArgumentError } from 'commander'
import { durationOption, environmentOption, integerOption, modeOption, wordsOption } from './option-parsers.js'

function refuses(parse: (text: string) => unknown, texts: string[]): void {
  for (const text of texts) assert.throws(() => parse(text), InvalidArgumentError, JSON.stringify(text))
}

describe('the value of an option', () => {
  it('that counts is a whole number without signs or words', () => {
    assert.deepEqual(['0', '512', '007', '999999999999999'].map(integerOption), [0, 512, 7, 999_999_999_999_999])
    refuses(integerOption, ['', '-1', '+1', '1.5', '1e3', '0x10', ' 1', '1 ', '١', '9999999999999999', 'many', 'NaN'])
  })

  it('that is a command is a JSON array of strings', () => {
    assert.deepEqual(['[]', '["sh","-c","a b"]'].map(wordsOption), [[], ['sh', '-c', 'a b']])
    refuses(wordsOption, ['', 'sh', '"sh"', '[1]', '[["sh"]]', '{"0":"sh"}', '["sh"', 'null'])
  })

  it('that is a time is in milliseconds, and seconds when nothing is said', () => {
    const times: [string, number][] = [
      ...([
        ['90', 90_000],
        ['500ms', 500],
        ['1.5s', 1_500],
        ['2m', 120_000],
        ['1h', 3_600_000],
        ['0.001', 1],
      ] as [string, number][]),
      ['2147483647ms', 2 ** 31 - 1],
    ]
    for (const [text, milliseconds] of times) assert.equal(durationOption(text), milliseconds, text)
    refuses(durationOption, [
      '',
      '0',
      '0ms',
      '-1s',
      '1d',
      '1 s',
      's',
      '1.s',
      '.5s',
      '1e3',
      '2147483648ms',
      '600h',
      'soon',
    ])
  })

  it('that is a variable keeps every = behind the first, and adds up', () => {
    assert.deepEqual(environmentOption('A=b=c'), { A: 'b=c' })
    assert.deepEqual(environmentOption('B=', { A: 'b' }), { A: 'b', B: '' })
    assert.deepEqual(environmentOption('A=2', { A: '1' }), { A: '2' })
    refuses((text) => environmentOption(text), ['', '=x', 'BANDSOX_TEST_NOT_SET'])
  })

  it('that is a variable without a value takes the one that it has here', (t) => {
    process.env['BANDSOX_TEST_SET'] = 'here'
    t.after(() => void delete process.env['BANDSOX_TEST_SET'])
    assert.deepEqual(environmentOption('BANDSOX_TEST_SET'), { BANDSOX_TEST_SET: 'here' })
  })

  it('that is a mode is octal', () => {
    assert.deepEqual(['644', '0755', '4755'].map(modeOption), [0o644, 0o755, 0o4755])
    refuses(modeOption, ['', '7', '77', '888', '0o644', '07777777', 'rwx', '-644'])
  })
})
