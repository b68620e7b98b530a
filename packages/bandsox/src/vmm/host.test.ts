import assert from 'node:assert/strict'
import { chmod, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { scriptProgram } from '../testing/script-program.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { type Acceleration, accelerationBy, groupsToOpen, type HostTools, probeKvm, requireLinuxX64 } from './host.js'

const probeAcceleration = async (tools: HostTools, device?: string): Promise<Acceleration> =>
  accelerationBy(await probeKvm(tools, device))

describe('this host', () => {
  it('must be Linux on x86-64', () => {
    requireLinuxX64('linux', 'x64')
    assert.throws(() => requireLinuxX64('darwin', 'arm64'), hasCode('host-unsupported', /this is darwin on arm64/))
    assert.throws(() => requireLinuxX64('linux', 'arm64'), hasCode('host-unsupported'))
    assert.throws(() => requireLinuxX64('win32', 'x64'), hasCode('host-unsupported'))
  })

  it('has KVM when the probe says so, else emulates for the reason that it gives', async (t) => {
    const device = path.join(await temporaryFolder(t), 'kvm')
    await writeFile(device, '')
    await chmod(device, 0o666)
    const cases: [string, { kind: 'kvm' | 'tcg'; reason: RegExp | undefined }][] = [
      ['echo \'{"usable":true,"reason":""}\'', { kind: 'kvm', reason: undefined }],
      ['echo \'{"usable":false,"reason":"no /dev/kvm"}\'; exit 3', { kind: 'tcg', reason: /^no \/dev\/kvm$/ }],
      ['echo broken >&2; exit 1', { kind: 'tcg', reason: /the KVM probe failed: .*broken/ }],
      ['kill -9 $$', { kind: 'tcg', reason: /the KVM probe failed/ }],
      ['echo what', { kind: 'tcg', reason: /something unknown/ }],
      ['echo \'{"usable":"yes"}\'', { kind: 'tcg', reason: /something unknown/ }],
    ]
    for (const [script, expected] of cases) {
      const shim = await scriptProgram(t, 'shim', `[ "$1" = probe-kvm ] || exit 9\n${script}`)
      const { kind, reason } = await probeAcceleration({ shim, searchPath: [] }, device)
      assert.equal(kind, expected.kind, script)
      if (expected.reason === undefined) assert.equal(reason, undefined)
      else assert.match(reason ?? '', expected.reason)
    }
    const missing = await probeAcceleration({ shim: '/no/shim', searchPath: [] })
    assert.equal(missing.kind, 'tcg')
  })

  it('says how fast its clock runs, whether KVM works or not, where the probe could tell', async (t) => {
    const device = path.join(await temporaryFolder(t), 'kvm')
    await writeFile(device, '')
    const cases: [string, number | undefined][] = [
      ['echo \'{"usable":true,"reason":"","tscKhz":2445400}\'', 2_445_400],
      ['echo \'{"usable":false,"reason":"none","tscKhz":2445400}\'; exit 3', 2_445_400],
      ['echo \'{"usable":false,"reason":"none"}\'; exit 3', undefined],
      ['echo \'{"usable":true,"reason":"","tscKhz":0}\'', undefined],
    ]
    for (const [script, expected] of cases) {
      const shim = await scriptProgram(t, 'shim', script)
      assert.equal((await probeKvm({ shim, searchPath: [] }, device)).tscKhz, expected, script)
    }
  })

  it('lets VMMs of their own users at KVM by the group of its device, never by being root or in its group', async (t) => {
    assert.deepEqual(groupsToOpen({ gid: 103, mode: 0o20660 }), [103])
    assert.deepEqual(groupsToOpen({ gid: 0, mode: 0o20666 }), [])
    assert.deepEqual(groupsToOpen({ gid: 103, mode: 0o20666 }), [])
    assert.equal(groupsToOpen({ gid: 0, mode: 0o20600 }), undefined)
    assert.equal(groupsToOpen({ gid: 0, mode: 0o20660 }), undefined)
    assert.equal(groupsToOpen({ gid: 103, mode: 0o20640 }), undefined)
    assert.equal(groupsToOpen({ gid: 103, mode: 0o20664 })?.[0], 103)
    const shim = await scriptProgram(t, 'shim', 'echo \'{"usable":true,"reason":""}\'')
    const device = path.join(path.dirname(shim), 'kvm')
    await writeFile(device, '')
    await chmod(device, 0o600)
    const { kind, reason } = await probeAcceleration({ shim, searchPath: [] }, device)
    if (process.getuid?.() === 0) assert.match(reason ?? '', /only root may open .*chgrp kvm/)
    else assert.equal(kind, 'kvm')
  })
})
