import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { ChecksumName } from '@bandsox/sdk'
import { hasCode } from '../testing/errors.js'
import { seededRandom } from '../testing/random.js'
import { chooseChecksum, createChecksum } from './checksum.js'

async function checksumOf(algorithm: ChecksumName, parts: Uint8Array[]): Promise<string> {
  const checksum = await createChecksum(algorithm)
  for (const part of parts) checksum.update(part)
  return checksum.digest()
}

describe('a checksum', () => {
  it('agrees with the published values', async () => {
    // xxHash: doc/xxhash_spec.md and the reference program; MD5: RFC 1321; SHA-256: FIPS 180-2.
    assert.equal(await checksumOf('xxh64', []), 'ef46db3751d8e999')
    assert.equal(await checksumOf('xxh64', [Buffer.from('abc')]), '44bc2cf5ad770999')
    assert.equal(await checksumOf('md5', [Buffer.from('abc')]), '900150983cd24fb0d6963f7d28e17f72')
    assert.equal(
      await checksumOf('sha256', [Buffer.from('abc')]),
      'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad',
    )
  })

  it('does not depend on how the bytes are cut, nor on others that run at the same time', async () => {
    const random = seededRandom(7)
    const bytes = random.bytes(50_000)
    const [one, other] = [await createChecksum('xxh64'), await createChecksum('xxh64')]
    for (let offset = 0; offset < bytes.length; ) {
      const size = 1 + random.below(3_000)
      one.update(bytes.subarray(offset, offset + size))
      other.update(Buffer.from('something else'))
      offset += size
    }
    assert.equal(one.digest(), await checksumOf('xxh64', [bytes]))
  })

  it('of less than 16 digits is filled up from the left', async () => {
    // Found by trying: its value begins with a zero.
    for (let number = 0; number < 200; number++) {
      assert.match(await checksumOf('xxh64', [Buffer.from(String(number))]), /^[0-9a-f]{16}$/)
    }
  })

  it('is the quickest that both know, or the one that was asked for', () => {
    assert.equal(chooseChecksum(['sha256', 'md5', 'new'], undefined), 'md5')
    assert.equal(chooseChecksum(['sha256', 'md5'], 'sha256'), 'sha256')
    assert.throws(
      () => chooseChecksum(['md5'], 'xxh64'),
      hasCode('bad-request', /does not offer the checksum xxh64; it has: md5/),
    )
    assert.throws(() => chooseChecksum(['crc32'], 'crc32' as ChecksumName), hasCode('bad-request', /unknown/))
    assert.throws(() => chooseChecksum(['crc32'], undefined), hasCode('agent-incompatible'))
  })
})
