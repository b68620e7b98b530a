import assert from 'node:assert/strict'
import { test } from 'node:test'
import { kernelChoice, parseDistribution } from './distribution.js'

test('os-release is read with and without quotes', () => {
  assert.deepEqual(
    parseDistribution('PRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\nVERSION_ID="12"\nID=debian\n# x\n'),
    {
      id: 'debian',
      version: '12',
      title: 'Debian GNU/Linux 12 (bookworm)',
    },
  )
  assert.deepEqual(parseDistribution('ID=arch\n'), { id: 'arch', version: '', title: 'arch' })
})

test('Debian and Ubuntu have a kernel for virtual machines', () => {
  const choose = (id: string, version: string) => kernelChoice({ id, version, title: id }).metaPackage
  assert.equal(choose('debian', '12'), 'linux-image-cloud-amd64')
  assert.equal(choose('debian', '13'), 'linux-image-cloud-amd64')
  assert.equal(choose('ubuntu', '24.04'), 'linux-image-virtual')
})

test('another distribution is refused with what to do instead', () => {
  assert.throws(() => kernelChoice({ id: 'fedora', version: '42', title: 'Fedora Linux 42' }), {
    code: 'host-unsupported',
    message: 'cannot fetch a guest kernel on Fedora Linux 42: known are debian 12, debian 13, ubuntu 24.04',
    hint: /--kernel PATH-OR-URL/,
  })
})
