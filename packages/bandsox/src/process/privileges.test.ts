import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { missingPrivileges } from './privileges.js'

describe('the privileges of a process', () => {
  const status = (mask: string) =>
    `Name:\tnode\nCapInh:\t0000000000000000\nCapEff:\t${mask}\nCapBnd:\t000001ffffffffff\n`

  it('are those in its effective set', () => {
    assert.deepEqual(missingPrivileges(['SYS_ADMIN', 'MKNOD'], status('000001ffffffffff')), [])
    assert.deepEqual(missingPrivileges(['SYS_ADMIN', 'MKNOD', 'CHOWN'], status('0000000000000000')), [
      ...['SYS_ADMIN', 'MKNOD', 'CHOWN'],
    ])
    // As an ordinary container has them.
    assert.deepEqual(missingPrivileges(['SYS_ADMIN', 'MKNOD', 'SYS_CHROOT', 'SETUID'], status('00000000a80425fb')), [
      'SYS_ADMIN',
    ])
    assert.deepEqual(missingPrivileges(['MKNOD'], 'nothing of the kind'), ['MKNOD'])
  })

  it('are found for this one', () => {
    assert.ok(Array.isArray(missingPrivileges(['SYS_ADMIN'])))
  })
})
