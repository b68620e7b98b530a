import assert from 'node:assert/strict'
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { type TestScope, temporaryFolder } from '../../testing/temporary-folder.js'
import {
  findQemu,
  findVsockBackend,
  groupsToOpen,
  probeAcceleration,
  requireLinuxX64,
  requireRecentQemu,
} from './host.js'

async function program(t: TestScope, name: string, script: string): Promise<string> {
  const folder = await temporaryFolder(t)
  const file = path.join(folder, name)
  await writeFile(file, `#!/bin/sh\n${script}\n`)
  await chmod(file, 0o755)
  return file
}

describe('this host', () => {
  it('must be Linux on x86-64', () => {
    requireLinuxX64('linux', 'x64')
    assert.throws(() => requireLinuxX64('darwin', 'arm64'), hasCode('host-unsupported', /this is darwin on arm64/))
    assert.throws(() => requireLinuxX64('linux', 'arm64'), hasCode('host-unsupported'))
    assert.throws(() => requireLinuxX64('win32', 'x64'), hasCode('host-unsupported'))
  })

  it('must have a QEMU that is not too old', () => {
    assert.equal(requireRecentQemu('QEMU emulator version 7.2.17 (Debian 1:7.2+dfsg-7)\nCopyright'), '7.2.17')
    assert.equal(requireRecentQemu('QEMU emulator version 10.0.2'), '10.0.2')
    assert.equal(requireRecentQemu('QEMU emulator version 8.0'), '8.0')
    for (const old of ['7.1.0', '6.2.0', '2.12.1']) {
      assert.throws(
        () => requireRecentQemu(`QEMU emulator version ${old}`),
        hasCode('host-unsupported', new RegExp(`QEMU ${old} is too old: 7.2`)),
      )
    }
    assert.throws(() => requireRecentQemu('something else'), hasCode('host-unsupported', /cannot tell QEMU's version/))
  })

  it('has QEMU where the search path finds it first, and may run it', async (t) => {
    const qemu = await program(t, 'qemu-system-x86_64', 'echo "QEMU emulator version 9.1.0"')
    const other = await program(t, 'qemu-system-x86_64', 'echo "QEMU emulator version 8.1.0"')
    const notRunnable = await temporaryFolder(t)
    await writeFile(path.join(notRunnable, 'qemu-system-x86_64'), '')
    await mkdir(path.join(notRunnable, 'more'))
    const tools = { shim: '', searchPath: ['/no/folder', notRunnable, path.dirname(qemu), path.dirname(other)] }
    assert.deepEqual(await findQemu(tools), { program: qemu, version: '9.1.0' })
    await assert.rejects(
      findQemu({ shim: '', searchPath: [notRunnable] }),
      hasCode('host-missing', /qemu-system-x86_64 is not installed/),
    )
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
      const shim = await program(t, 'shim', `[ "$1" = probe-kvm ] || exit 9\n${script}`)
      const { kind, reason } = await probeAcceleration({ shim, searchPath: [] }, device)
      assert.equal(kind, expected.kind, script)
      if (expected.reason === undefined) assert.equal(reason, undefined)
      else assert.match(reason ?? '', expected.reason)
    }
    const missing = await probeAcceleration({ shim: '/no/shim', searchPath: [] })
    assert.equal(missing.kind, 'tcg')
  })

  it('lets VMMs of their own users at KVM by the group of its device, never by being root or in its group', async (t) => {
    assert.deepEqual(groupsToOpen({ gid: 103, mode: 0o20660 }), [103])
    assert.deepEqual(groupsToOpen({ gid: 0, mode: 0o20666 }), [])
    assert.deepEqual(groupsToOpen({ gid: 103, mode: 0o20666 }), [])
    assert.equal(groupsToOpen({ gid: 0, mode: 0o20600 }), undefined)
    assert.equal(groupsToOpen({ gid: 0, mode: 0o20660 }), undefined)
    assert.equal(groupsToOpen({ gid: 103, mode: 0o20640 }), undefined)
    assert.equal(groupsToOpen({ gid: 103, mode: 0o20664 })?.[0], 103)
    const shim = await program(t, 'shim', 'echo \'{"usable":true,"reason":""}\'')
    const device = path.join(path.dirname(shim), 'kvm')
    await writeFile(device, '')
    await chmod(device, 0o600)
    const { kind, reason } = await probeAcceleration({ shim, searchPath: [] }, device)
    if (process.getuid?.() === 0) assert.match(reason ?? '', /only root may open .*chgrp kvm/)
    else assert.equal(kind, 'kvm')
  })

  it('has the vsock of its kernel, else the daemon, else neither, with what helps', async (t) => {
    const folder = await temporaryFolder(t)
    const device = path.join(folder, 'vhost-vsock')
    const daemon = await program(t, 'vhost-device-vsock', '')
    const withDaemon = { shim: '', searchPath: [path.dirname(daemon)] }
    const without = { shim: '', searchPath: [folder] }
    assert.deepEqual(await findVsockBackend(withDaemon, device), { kind: 'daemon', program: daemon })
    const absent = await findVsockBackend(without, device)
    assert.match(absent.kind === 'none' ? absent.reason : '', /ENOENT.*vhost-device-vsock is not installed/)
    assert.match(absent.kind === 'none' ? absent.hint : '', /modprobe vhost_vsock/)
    await writeFile(device, '')
    assert.deepEqual(await findVsockBackend(withDaemon, device), { kind: 'kernel' })
    if (process.getuid?.() === 0) return // nothing is refused to root
    await chmod(device, 0)
    const refused = await findVsockBackend(without, device)
    assert.match(refused.kind === 'none' ? refused.hint : '', /let a group of yours open/)
  })
})
