import assert from 'node:assert/strict'
import { cp, rename } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { keyOf, programOf, type TemplateFacts } from './template-key.js'

const facts: TemplateFacts = {
  ...{ fingerprint: { vmm: 'qemu', version: '7.2.22', cpu: 'one' }, program: ['1', '2', '3', '4'] },
  ...{ image: 'sha256:aa', kernel: 'bb', initramfs: 'cc', shape: [1, 256, 4096] },
}

describe("a template's key", () => {
  it('is another one when any of its facts is', () => {
    const others: Partial<TemplateFacts>[] = [
      { fingerprint: { ...facts.fingerprint, version: '10.0.3' } },
      { fingerprint: { ...facts.fingerprint, cpu: 'another' } },
      { fingerprint: { ...facts.fingerprint, devices: 'more' } },
      { program: ['1', '2', '3', '5'] },
      { image: 'sha256:ab' },
      { kernel: 'bc' },
      { initramfs: 'cd' },
      ...[0, 1, 2].map((index) => ({ shape: facts.shape.map((each, at) => (at === index ? each + 1 : each)) })),
    ]
    const keys = [facts, ...others.map((other) => ({ ...facts, ...other }))].map(keyOf)
    assert.equal(new Set(keys).size, keys.length)
  })

  it('is the same whatever the order of what a VMM tells', () => {
    const reversed = Object.fromEntries(Object.entries(facts.fingerprint).reverse())
    assert.equal(keyOf({ ...facts, fingerprint: reversed }), keyOf(facts))
  })

  it('is the same when another boot of the host has measured its clock a little differently', () => {
    const at = (tscKhz: string) => keyOf({ ...facts, fingerprint: { ...facts.fingerprint, tscKhz } })
    assert.equal(at('2445400'), at('2445401'))
  })

  it('is another one when a VMM was replaced by one of the same version', async (t) => {
    const folder = await temporaryFolder(t)
    const [program, upgrade] = [path.join(folder, 'vmm'), path.join(folder, 'upgrade')]
    await cp('/bin/true', program)
    const before = programOf(program)
    assert.deepEqual(programOf(program), before)
    await cp('/bin/true', upgrade)
    await rename(upgrade, program)
    assert.notDeepEqual(programOf(program), before)
  })
})
