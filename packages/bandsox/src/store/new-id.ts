/** Ids of what the store keeps: a prefix, and 50 random bits in RFC 4648 base32, lower case. */
import { randomBytes } from 'node:crypto'

const ALPHABET = 'abcdefghijklmnopqrstuvwxyz234567'
const LENGTH = 10

export const newId = (prefix: 'sbx' | 'snp' | 'pool'): string =>
  `${prefix}_${Array.from(randomBytes(LENGTH), (byte) => ALPHABET[byte % ALPHABET.length]).join('')}`
