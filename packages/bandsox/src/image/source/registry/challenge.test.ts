import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { parseChallenges } from './challenge.js'

const plain = (header: string | string[] | undefined) =>
  parseChallenges(header).map(({ scheme, parameters }) => [scheme, Object.fromEntries(parameters)])

describe('the header WWW-Authenticate', () => {
  for (const [title, header, expected] of [
    ['is not there', undefined, []],
    [
      'of Docker Hub',
      'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push"',
      [
        [
          'bearer',
          { realm: 'https://auth.docker.io/token', service: 'registry.docker.io', scope: 'repository:a/b:pull,push' },
        ],
      ],
    ],
    [
      'with spaces and upper case',
      'BASIC  Realm = "a b" , charset=UTF-8',
      [['basic', { realm: 'a b', charset: 'UTF-8' }]],
    ],
    ['with quotes in quotes', 'Basic realm="a \\"b\\" \\\\"', [['basic', { realm: 'a "b" \\' }]]],
    [
      'with several challenges in one',
      'Negotiate, Basic realm="x", Bearer realm="y",scope=z',
      [
        ['negotiate', {}],
        ['basic', { realm: 'x' }],
        ['bearer', { realm: 'y', scope: 'z' }],
      ],
    ],
    [
      'sent more than once',
      ['Basic realm=x', 'Bearer realm=y'],
      [
        ['basic', { realm: 'x' }],
        ['bearer', { realm: 'y' }],
      ],
    ],
    [
      'with a token68',
      'Negotiate YII+/a==, Basic realm=x',
      [
        ['negotiate', {}],
        ['basic', { realm: 'x' }],
      ],
    ],
    [
      'with an unquoted address',
      'Bearer realm=https://a.example/token?x=1',
      [['bearer', { realm: 'https://a.example/token?x=1' }]],
    ],
    ['that repeats a name', 'Basic realm=a, realm=b', [['basic', { realm: 'a' }]]],
    [
      'that breaks off in quotes',
      'Bearer realm="https://a',
      [
        ['bearer', {}],
        ['realm', {}],
      ],
    ],
    ['of rubbish', '\u0000"=,', []],
    [
      'named like a property of all objects',
      'Bearer __proto__=a',
      [['bearer', Object.fromEntries([['__proto__', 'a']])]],
    ],
  ] as const)
    it(title, () => assert.deepEqual(plain(header as string), expected))

  it('is read in a time that does not grow faster than its length', () => {
    const started = performance.now()
    for (const hostile of [`Bearer ${'a="'.repeat(100_000)}`, 'B '.repeat(100_000), `B a="${'\\'.repeat(100_000)}`])
      parseChallenges(hostile)
    assert.ok(performance.now() - started < 1000)
  })
})
