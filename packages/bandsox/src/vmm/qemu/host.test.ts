import assert from 'node:assert/strict'
import { chmod, mkdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import { scriptProgram } from '../../testing/script-program.js'
import { temporaryFolder } from '../../testing/temporary-folder.js'
import { findQemu, findVsockBackend, requireRecentQemu } from './host.js'

describe('this host, for QEMU', () => {
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
    const qemu = await scriptProgram(t, 'qemu-system-x86_64', 'echo "QEMU emulator version 9.1.0"')
    const other = await scriptProgram(t, 'qemu-system-x86_64', 'echo "QEMU emulator version 8.1.0"')
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

  it('has the vsock of its kernel, else the daemon, else neither, with what helps', async (t) => {
    const folder = await temporaryFolder(t)
    const device = path.join(folder, 'vhost-vsock')
    const daemon = await scriptProgram(t, 'vhost-device-vsock', '')
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
