import assert from 'node:assert/strict'
import type { LookupAddress } from 'node:dns'
import { it } from 'node:test'
import { BandSoxError } from '@bandsox/sdk'
import { hasCode } from '../../../testing/errors.js'
import { checkPublic, isPublic, lookupPublic } from './public-address.js'

it('addresses of this host, of private networks and of none are not public', () => {
  const inside = ['0.0.0.0', '10.255.0.1', '100.127.0.1', '127.0.0.2', '169.254.169.254', '172.31.0.1', '192.168.0.1']
  const others = ['224.0.0.1', '255.255.255.255', '::', '::1', 'fd12::1', 'fe80::1', 'ff02::1', '64:ff9b::a00:1']
  for (const address of [...inside, ...others, '::ffff:10.0.0.1', '::ffff:7f00:1'])
    assert.equal(isPublic(address), false, address)
  for (const address of ['8.8.8.8', '100.128.0.1', '172.32.0.1', '2606:4700::1', '::ffff:8.8.8.8'])
    assert.equal(isPublic(address), true, address)
  checkPublic('localhost') // until its addresses are known
  assert.throws(() => checkPublic('[::1]'), hasCode('permission-denied', /\[::1\] is on this host/))
})

it('a name is connected to at the addresses that were looked at', async () => {
  const look = (name: string, all: boolean) =>
    new Promise<string | LookupAddress[]>((resolve, reject) =>
      lookupPublic(name, { all }, (error, found) => (error === null ? resolve(found) : reject(error))),
    )
  // Addresses are names that need no server.
  assert.equal(await look('8.8.8.8', false), '8.8.8.8')
  assert.deepEqual(await look('8.8.8.8', true), [{ address: '8.8.8.8', family: 4 }])
  await assert.rejects(look('localhost', true), hasCode('permission-denied', /localhost is on this host/))
  await assert.rejects(look('localhost', false), hasCode('permission-denied'))
  await assert.rejects(look('no.such.name.invalid', true), (error) => !(error instanceof BandSoxError))
})
