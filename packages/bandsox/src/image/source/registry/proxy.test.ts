import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { proxyFor } from './proxy.js'

const https = 'http://proxy.example:3128'

describe('the proxy of a request', () => {
  it('is that of its scheme', () => {
    const settings = { http: 'plain.example:81', https }
    assert.equal(proxyFor(new URL('https://ghcr.io/v2/'), settings), https)
    assert.equal(proxyFor(new URL('http://ghcr.io/v2/'), settings), 'http://plain.example:81')
    assert.equal(proxyFor(new URL('https://ghcr.io/v2/'), { http: https, https: '' }), undefined)
  })

  it('is none on the loopback', () => {
    for (const url of ['https://localhost:5000/', 'https://127.0.0.1/', 'https://[::1]:5000/'])
      assert.equal(proxyFor(new URL(url), { https }), undefined, url)
  })

  for (const [none, url, isDirect] of [
    ['*', 'https://a.example/', true],
    ['b.example, a.example', 'https://a.example/', true],
    ['a.example', 'https://sub.a.example/', true],
    ['a.example', 'https://nota.example/', false],
    ['.a.example', 'https://sub.a.example/', true],
    ['*.a.example', 'https://sub.a.example/', true],
    ['.a.example', 'https://a.example/', false],
    ['A.Example', 'https://a.example/', true],
    ['a.example:443', 'https://a.example/', true],
    ['a.example:444', 'https://a.example/', false],
    ['a.example:5000', 'https://a.example:5000/', true],
    ['10.0.0.0/8', 'https://10.1.2.3:5000/', true],
    ['10.0.0.0/8', 'https://11.1.2.3/', false],
    ['10.0.0.0/8', 'https://10.example/', false],
    ['10.0.0.0/99', 'https://10.1.2.3/', false],
    ['fd00::/8', 'https://[fd00::1]/', true],
    ['10.1.2.3', 'https://10.1.2.3/', true],
    ['2.3', 'https://10.1.2.3/', false],
    ['[fd00::1]:5000', 'https://[fd00::1]:5000/', true],
    ['', 'https://a.example/', false],
  ] as const)
    it(`is ${isDirect ? 'none' : 'there'} for ${url} when NO_PROXY is ${JSON.stringify(none)}`, () => {
      assert.equal(proxyFor(new URL(url), { https, none }), isDirect ? undefined : https)
    })
})
