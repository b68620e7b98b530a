import assert from 'node:assert/strict'
import { test } from 'node:test'
import { bzImage } from './bzimage.fixture.js'
import { parseBzImage } from './bzimage.js'

const payload = Buffer.from('payload')

test('the header tells where the payload is, and the release', () => {
  const image = bzImage(payload, '6.1.0-56-cloud-amd64')
  const { payloadOffset, payloadBytes, release } = parseBzImage(image)
  assert.deepEqual(image.subarray(payloadOffset, payloadOffset + payloadBytes), payload)
  assert.equal(release, '6.1.0-56-cloud-amd64')
})

test('a count of no setup sectors means four', () => {
  const image = bzImage(payload, '6.1.0')
  image.writeUInt8(0, 0x1f1)
  assert.equal(parseBzImage(image).payloadOffset, 5 * 512 + 100)
})

test('what is no bzImage, is cut short, or is older than the payload fields is damaged', () => {
  const image = bzImage(payload, '6.1.0')
  assert.throws(() => parseBzImage(Buffer.from('\x7fELF')), { code: 'artifact-damaged' })
  assert.throws(() => parseBzImage(image.subarray(0, 0x210)), { code: 'artifact-damaged' })
  image.writeUInt16LE(0x0207, 0x206)
  assert.throws(() => parseBzImage(image), { code: 'artifact-damaged', message: /0x207/ })
})

test('a release that could not be part of a file name is refused', () => {
  assert.throws(() => parseBzImage(bzImage(payload, '/../../etc')), {
    code: 'artifact-damaged',
    message: /names no release/,
  })
})
