import assert from 'node:assert/strict'
import { dirname } from 'node:path'
import { test } from 'node:test'
import { baseEntries } from './base-files.js'

const applets = ['bin/ls', 'sbin/ifconfig', 'usr/bin/[', 'usr/sbin/chroot', 'bin/busybox', 'linuxrc', 'usr/bin/ls']
const entries = [...baseEntries(Buffer.from('busybox'), applets)]
const headers = entries.map(({ header }) => header)
const find = (name: string) => headers.find((header) => header.name === name)

test('each path comes once, and every folder before what is in it', () => {
  const names = headers.map(({ name }) => name)
  assert.equal(new Set(names).size, names.length)
  for (const [index, name] of names.entries()) {
    const parent = dirname(name)
    if (parent !== '.') assert.ok(names.slice(0, index).includes(parent), `${parent} before ${name}`)
  }
})

test('applets are links to the one program', () => {
  assert.equal(find('usr/bin/ls')?.linkname, 'busybox')
  assert.equal(find('usr/bin/[')?.linkname, 'busybox')
  assert.equal(find('usr/sbin/ifconfig')?.linkname, '../bin/busybox')
  assert.equal(find('usr/bin/busybox')?.type, 'file')
  assert.equal(find('linuxrc'), undefined)
})

test('all belongs to root but the home of the user sandbox, and nothing has a time', () => {
  for (const { name, uid, gid, mtime } of headers) {
    const owner = name === 'home/sandbox' ? 1000 : 0
    assert.deepEqual({ name, uid, gid, mtime }, { name, uid: owner, gid: owner, mtime: new Date(0) })
  }
})

test('root’s home is closed, and everybody may write to /tmp', () => {
  assert.equal(find('root')?.mode, 0o700)
  assert.equal(find('tmp')?.mode, 0o1777)
  assert.equal(find('var/tmp')?.mode, 0o1777)
})
