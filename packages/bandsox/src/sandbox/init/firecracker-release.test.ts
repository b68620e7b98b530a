import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { checkSha256, checksumUrls, locateRelease, parseChecksum, parseUrl } from './firecracker-release.js'

const hex = '0123456789abcdef'.repeat(4)
const placesOf = (request: Parameters<typeof locateRelease>[0]) =>
  locateRelease(request, 'x64').archives.map(({ href }) => href)

describe('a release', () => {
  it('is at the project, under its version', () => {
    assert.deepEqual(locateRelease({}, 'x64'), {
      version: '1.16.1',
      archiveName: 'firecracker-v1.16.1-x86_64.tgz',
      archives: [
        'https://github.com/firecracker-microvm/firecracker/releases/download/v1.16.1/firecracker-v1.16.1-x86_64.tgz',
        'https://github.com/firecracker-microvm/firecracker/releases/download/firecracker-v1.16.1-x86_64.tgz',
      ].map((url) => new URL(url)),
      programs: {
        firecracker: 'release-v1.16.1-x86_64/firecracker-v1.16.1-x86_64',
        jailer: 'release-v1.16.1-x86_64/jailer-v1.16.1-x86_64',
      },
    })
    assert.equal(locateRelease({ version: 'v1.9.0' }, 'arm64').archiveName, 'firecracker-v1.9.0-aarch64.tgz')
  })

  it('is at a mirror, in a folder of its version or in the one that was named', () => {
    const places = ['http://m/fc/v1.2.3/firecracker-v1.2.3-x86_64.tgz', 'http://m/fc/firecracker-v1.2.3-x86_64.tgz']
    assert.deepEqual(placesOf({ version: '1.2.3', url: 'http://m/fc' }), places)
    assert.deepEqual(placesOf({ version: '1.2.3', url: 'http://m/fc/' }), places)
    assert.deepEqual(
      placesOf({ version: '1.2.3', url: 'http://m/fc?token=a' }),
      places.map((place) => `${place}?token=a`),
    )
    assert.equal(placesOf({ version: '1.2.3', url: 'file:///mnt/' })[1], 'file:///mnt/firecracker-v1.2.3-x86_64.tgz')
  })

  it('is an archive, whose name tells the version unless somebody does', () => {
    const url = 'file:///mnt/firecracker-v1.4.5-x86_64.tgz'
    assert.deepEqual(placesOf({ url }), [url])
    assert.equal(locateRelease({ url }, 'x64').version, '1.4.5')
    assert.equal(locateRelease({ url, version: '1.4.4' }, 'x64').version, '1.4.4')
    assert.equal(locateRelease({ url: 'http://m/latest.tar.gz' }, 'x64').version, '1.16.1')
  })

  for (const version of ['', 'latest', '1.16', '1.16.1-dev', '../1.2.3', '1.2.3/..', '1.2.99999'])
    it(`has no version ${JSON.stringify(version)}`, () => {
      assert.throws(() => locateRelease({ version }, 'x64'), hasCode('bad-request', /is no version of Firecracker/))
    })

  it('is not made for every processor', () => {
    assert.throws(() => locateRelease({}, 'riscv64'), hasCode('host-unsupported', /for riscv64/))
  })
})

describe('a URL', () => {
  for (const text of ['', 'a.tgz', '/mnt/a.tgz', 'ftp://host/a', 'data:,x', 'http://'])
    it(`is not ${JSON.stringify(text)}`, () => {
      assert.throws(() => parseUrl(text, '--kernel-url'), hasCode('bad-request', /--kernel-url: .* is no URL/))
    })

  it('of a file names no host', () => {
    assert.throws(() => parseUrl('file://mnt/a', '--kernel-url'), hasCode('bad-request', /names another host/))
  })
})

describe('a checksum', () => {
  it('lies beside its file', () => {
    assert.deepEqual(
      checksumUrls(new URL('http://h/a.tgz?x=1')).map(({ href }) => href),
      ['http://h/a.tgz.sha256.txt?x=1', 'http://h/a.tgz.sha256?x=1'],
    )
  })

  for (const [what, text, expected] of [
    ['as sha256sum prints it', `${hex}  a.tgz\n`, hex],
    ['of a binary file', `${hex} *a.tgz\n`, hex],
    ['in another folder', `${hex}  build/out/a.tgz\r\n`, hex],
    ['alone', `${hex.toUpperCase()}\n`, hex],
    ['among those of others', `${'f'.repeat(64)}  b.tgz\n${hex}  a.tgz\n`, hex],
    ['of another file', `${hex}  b.tgz\n`, undefined],
    ['that is none', '<html>not found</html>', undefined],
    ['too short', `${hex.slice(1)}  a.tgz`, undefined],
    ['told twice', `${hex}  a.tgz\n${'f'.repeat(64)}  a.tgz\n`, undefined],
    ['without a name among others', `${hex}\n${'f'.repeat(64)}\n`, undefined],
    ['of nothing', '', undefined],
  ] as const) {
    it(`is read ${what}`, () => assert.equal(parseChecksum(text, 'a.tgz'), expected))
  }

  it('that somebody gives has 64 digits', () => {
    assert.equal(checkSha256(hex.toUpperCase(), '--kernel-sha256'), hex)
    assert.throws(() => checkSha256('abc', '--kernel-sha256'), hasCode('bad-request', /--kernel-sha256: .* 64/))
  })
})
