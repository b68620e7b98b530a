import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { seededRandom } from '../../testing/random.js'
import { formatReference, parseReference } from './reference.js'

const digest = `sha256:${'0123456789abcdef'.repeat(4)}`

describe('a reference of a registry', () => {
  for (const [text, canonical] of [
    ['alpine', 'docker.io/library/alpine:latest'],
    ['alpine:3.20', 'docker.io/library/alpine:3.20'],
    ['owner/name', 'docker.io/owner/name:latest'],
    ['docker.io/alpine', 'docker.io/library/alpine:latest'],
    ['index.docker.io/alpine', 'docker.io/library/alpine:latest'],
    ['registry-1.docker.io/a/b', 'docker.io/a/b:latest'],
    ['docker://alpine', 'docker.io/library/alpine:latest'],
    ['docker:dind', 'docker.io/library/docker:dind'],
    ['localhost/a', 'localhost/a:latest'],
    ['localhost:5000/a/b:tag', 'localhost:5000/a/b:tag'],
    ['[::1]:5000/a', '[::1]:5000/a:latest'],
    ['GHCR.io/owner/name', 'ghcr.io/owner/name:latest'],
    ['ghcr.io/a__b/c--d/e.f_g:T-1.x', 'ghcr.io/a__b/c--d/e.f_g:T-1.x'],
    [`alpine@${digest}`, `docker.io/library/alpine@${digest}`],
    [`alpine:3@${digest}`, `docker.io/library/alpine:3@${digest}`],
    [`localhost:5000/a@${digest}`, `localhost:5000/a@${digest}`],
    [`a:${'t'.repeat(128)}`, `docker.io/library/a:${'t'.repeat(128)}`],
    ['a'.repeat(237), `docker.io/library/${'a'.repeat(237)}:latest`],
  ] as const) {
    it(`${text.slice(0, 60)} is read as Docker reads it`, () => {
      assert.equal(formatReference(parseReference(text)), canonical)
      assert.deepEqual(parseReference(canonical), parseReference(text))
    })
  }

  for (const [text, why] of [
    ['', /empty text is no reference/],
    [':tag', /name of the repository is missing/],
    ['ghcr.io/', /name of the repository is missing/],
    ['Alpine', /no upper-case letters; such as alpine$/],
    ['ghcr.io/Owner/name', /no upper-case letters; such as owner\/name$/],
    ['Owner/name', /no upper-case letters/],
    ['a..b', /single dots/],
    ['a___b', /single dots/],
    ['-a', /single dots/],
    ['a//b', /single dots/],
    ['a/b/', /single dots/],
    ['a b', /single dots/],
    ['ä', /single dots/],
    ['--privileged', /single dots/],
    ['a:', /a tag has 1 to 128/],
    ['a:-x', /a tag has 1 to 128/],
    [`a:${'t'.repeat(129)}`, /a tag has 1 to 128/],
    ['a@sha256:abc', /no SHA-256 digest/],
    [`a@sha512:${'0'.repeat(128)}`, /no SHA-256 digest/],
    [`a@${digest.toUpperCase()}`, /no SHA-256 digest/],
    [`a@${digest}@${digest}`, /more than one @/],
    ['0'.repeat(64), /the id of an image/],
    ['a'.repeat(238), /256 characters, over 255/],
    ['a'.repeat(5000), /5000 characters, over 4096/],
    ['exa_mple.com/a', /exa_mple.com is no name of a host/],
    ['example.com:port/a', /no name of a host/],
    ['.example.com/a', /no name of a host/],
    ['https://ghcr.io/a/b', /it is a URL; such as ghcr.io/],
    ['a\n', /control characters/],
  ] as const) {
    it(`${JSON.stringify(text).slice(0, 60)} is refused, with an example`, () => {
      assert.throws(() => parseReference(text), hasCode('bad-request', why))
      assert.throws(() => parseReference(text), hasCode('bad-request', /; such as /))
    })
  }

  it('without a registry gets the one that is configured, and no library/', () => {
    const options = { shortNameRegistry: 'mirror.example:5000' }
    assert.equal(formatReference(parseReference('alpine', options)), 'mirror.example:5000/alpine:latest')
    assert.equal(formatReference(parseReference('a/b:1', options)), 'mirror.example:5000/a/b:1')
    assert.equal(formatReference(parseReference('docker.io/alpine', options)), 'docker.io/library/alpine:latest')
  })
})

describe('a reference with the prefix of its kind', () => {
  for (const [text, parsed] of [
    ['oci:/images/a', { kind: 'oci', folder: '/images/a', tag: undefined }],
    ['oci:a:3.20', { kind: 'oci', folder: 'a', tag: '3.20' }],
    ['oci:a:ghcr.io/x/y:1', { kind: 'oci', folder: 'a', tag: 'ghcr.io/x/y:1' }],
    ['oci-archive:a b.tar:t', { kind: 'oci-archive', file: 'a b.tar', tag: 't' }],
    ['docker-archive:a.tar', { kind: 'docker-archive', file: 'a.tar', reference: undefined }],
    ['docker-archive:a.tar:b:1', { kind: 'docker-archive', file: 'a.tar', reference: 'docker.io/library/b:1' }],
    ['docker-daemon:alpine:3', { kind: 'docker-daemon', name: 'alpine:3' }],
    [`docker-daemon:${digest}`, { kind: 'docker-daemon', name: digest }],
    ['podman:localhost/mine', { kind: 'podman', name: 'localhost/mine' }],
    ['podman:0123456789ab', { kind: 'podman', name: '0123456789ab' }],
    ['rootfs:./a:b.tar', { kind: 'rootfs', file: './a:b.tar' }],
  ] as const) {
    it(`${text} is taken apart, and is its own canonical text's`, () => {
      assert.deepEqual(parseReference(text), parsed)
      assert.deepEqual(parseReference(formatReference(parsed)), parsed)
    })
  }

  for (const [text, why] of [
    ['oci:', /the path is missing; such as oci:/],
    ['oci::tag', /the path is missing/],
    ['oci:a:', /"" is no tag/],
    ['oci:a:b c', /a path with a colon in it cannot be named/],
    ['oci-archive:', /the path is missing; such as oci-archive:/],
    ['docker-archive:', /the path is missing; such as docker-archive:/],
    ['docker-archive:a.tar:B', /no upper-case letters/],
    ['docker-daemon:', /missing/],
    ['podman:--help', /single dots/],
    ['rootfs:', /the file is missing; such as rootfs:/],
    ['oci:a\0b', /control characters/],
  ] as const) {
    it(`${JSON.stringify(text)} is refused`, () => {
      assert.throws(() => parseReference(text), hasCode('bad-request', why))
    })
  }
})

it('whatever is accepted has a canonical text that means the same and is its own canonical text', () => {
  const random = seededRandom(7)
  const pieces = [
    'oci:',
    'oci-archive:',
    'docker-archive:',
    'podman:',
    'rootfs:',
    'docker://',
    'localhost',
    'a',
    'b1',
    'X',
  ]
  pieces.push('.', ':', '/', '@', '-', '_', '__', ':5000', digest, '[::1]', 'docker.io', 'tag', ' ')
  let accepted = 0
  for (let round = 0; round < 20_000; round++) {
    const text = Array.from({ length: 1 + random.below(7) }, () => random.pick(pieces)).join('')
    const options = random.below(2) === 0 ? {} : { shortNameRegistry: 'short.example' }
    let parsed: ReturnType<typeof parseReference>
    try {
      parsed = parseReference(text, options)
    } catch (error) {
      hasCode('bad-request')(error)
      continue
    }
    accepted++
    const canonical = formatReference(parsed)
    assert.deepEqual(parseReference(canonical), parsed, text)
    assert.equal(formatReference(parseReference(canonical, { shortNameRegistry: 'other.example' })), canonical)
  }
  assert.ok(accepted > 1000, `only ${accepted} were accepted`)
})
