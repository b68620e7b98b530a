import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parsePackage } from './apt.js'

test('a package tells its name, version and the first of each of its alternatives', () => {
  const entry = [
    'Package: linux-image-6.1.0-56-cloud-amd64',
    'Version: 6.1.192-2',
    'Depends: kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool, libc6:amd64',
    'Description-en: Linux',
    ' Depends: not a field',
    '',
  ].join('\n')
  assert.deepEqual(parsePackage(entry), {
    name: 'linux-image-6.1.0-56-cloud-amd64',
    version: '6.1.192-2',
    depends: ['kmod', 'linux-base', 'initramfs-tools', 'libc6'],
  })
})

test('a package without dependencies has none', () => {
  assert.deepEqual(parsePackage('Package: a\nVersion: 1\n').depends, [])
})
