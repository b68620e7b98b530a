import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { describeCpu, hostCpu } from './host-cpu.js'

const cpuinfo = (over: Record<string, string> = {}, second = '') => {
  const fields = {
    processor: '0',
    vendor_id: 'AuthenticAMD',
    'cpu family': '26',
    model: '2',
    'model name': 'EPYC',
    stepping: '1',
  }
  const all = { ...fields, microcode: '0x1', 'cpu MHz': '2596.1', flags: 'fpu sse avx', ...over }
  const text = Object.entries(all).map(([name, value]) => `${name}\t: ${value}`)
  return `${text.join('\n')}\n\n${second}`
}

describe("a host's processor", () => {
  it('is its model and what it can do, in whichever order that is told, and not how fast it runs now', () => {
    const known = describeCpu(cpuinfo())
    assert.match(known, /^AuthenticAMD, 26, 2, EPYC, 1, [0-9a-f]{16}$/)
    const same = cpuinfo({ 'cpu MHz': '1400.0', flags: 'avx fpu sse' }, cpuinfo({ 'model name': 'another' }))
    assert.equal(describeCpu(same), known)
    for (const change of [{ 'model name': 'Other' }, { flags: 'fpu sse' }, { stepping: '2' }])
      assert.notEqual(describeCpu(cpuinfo(change)), known)
  })

  it('is that of this host', async () => {
    assert.match(await hostCpu(), /^\S.*[0-9a-f]{16}$/)
  })
})
