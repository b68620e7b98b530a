import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { endpointsOf, isLoopback, registryConfigSchema } from './registry-config.js'

const config = (value: unknown) => registryConfigSchema.parse(value)

describe('the configuration of registries', () => {
  it('is complete when nothing is configured', () => {
    assert.deepEqual(config({}), { registries: {}, shortNameRegistry: 'docker.io' })
  })

  it('refuses what would not mean what it says', () => {
    for (const wrong of [
      { registry: {} },
      { registries: { 'https://ghcr.io': {} } },
      { registries: { 'ghcr.io': { mirror: [] } } },
      { registries: { 'ghcr.io': { mirrors: ['mirror.example'] } } },
      { registries: { 'ghcr.io': { mirrors: ['ftp://mirror.example'] } } },
      { registries: { 'ghcr.io': { mirrors: ['https://user:secret@mirror.example'] } } },
      { registries: { 'ghcr.io': { ca: 'relative.pem' } } },
      { shortNameRegistry: 'namespace' },
    ])
      assert.equal(registryConfigSchema.safeParse(wrong).success, false, JSON.stringify(wrong))
  })
})

describe('the servers of a registry', () => {
  it('are the host of Docker Hub for docker.io, over TLS alone', () => {
    assert.deepEqual(endpointsOf('docker.io', 'library/a', config({})), [
      {
        registry: 'docker.io',
        host: 'registry-1.docker.io',
        schemes: ['https'],
        verifyTls: true,
        ca: undefined,
        repository: 'library/a',
      },
    ])
  })

  it('are its mirrors first, in their order, with their own settings', () => {
    const endpoints = endpointsOf(
      'docker.io',
      'library/a',
      config({
        registries: {
          'docker.io': { mirrors: ['https://one.example/hub/', 'http://two.example:81'] },
          'one.example': { ca: '/ca.pem', insecure: true },
        },
      }),
    )
    assert.deepEqual(
      endpoints.map(({ host, schemes, repository, ca, verifyTls }) => [host, schemes, repository, ca, verifyTls]),
      [
        ['one.example', ['https'], 'hub/library/a', '/ca.pem', false],
        ['two.example:81', ['http'], 'library/a', undefined, true],
        ['registry-1.docker.io', ['https'], 'library/a', undefined, true],
      ],
    )
  })

  it('may be without TLS on the loopback, unless that is configured otherwise', () => {
    const schemes = (registry: string, value: unknown = {}) => endpointsOf(registry, 'a', config(value))[0]?.schemes
    assert.deepEqual(schemes('localhost:5000'), ['https', 'http'])
    assert.deepEqual(schemes('localhost:5000', { registries: { 'localhost:5000': { insecure: false } } }), ['https'])
    assert.deepEqual(schemes('a.example', { registries: { 'a.example': { insecure: true } } }), ['https', 'http'])
  })
})

it('the loopback is what cannot leave this host', () => {
  for (const host of ['localhost', 'localhost:1', '127.0.0.1', '127.9.9.9:5000', '[::1]', '[::1]:5000'])
    assert.equal(isLoopback(host), true, host)
  for (const host of [
    '127.example.com',
    '127.0.0.1.example.com',
    '128.0.0.1',
    '[::2]',
    'localhost.example',
    '10.127.0.1',
  ])
    assert.equal(isLoopback(host), false, host)
})
