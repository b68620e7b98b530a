import assert from 'node:assert/strict'
import { chmod, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import type { HostTools, Kvm } from './host.js'
import { chooseVmm } from './host-vmm.js'

const usable: Kvm = { usable: true, groups: [] }
const none: Kvm = { usable: false, reason: 'no /dev/kvm' }

async function hostWith(t: TestScope, kvm: Kvm, version?: string): Promise<HostTools> {
  const folder = await temporaryFolder(t)
  if (version !== undefined) {
    const program = path.join(folder, 'firecracker')
    await writeFile(program, `#!/bin/sh\necho Firecracker v${version}\n`)
    await chmod(program, 0o755)
  }
  return { shim: '/no/shim', searchPath: [folder], kvm }
}

describe('the VMM of a host', () => {
  const auto = { vmm: 'auto', jailer: 'auto' } as const

  it('is Firecracker where that is and KVM works, else QEMU, and it is said why', async (t) => {
    const on = async (...host: [Kvm, string?]) => await chooseVmm(await hostWith(t, ...host), auto)
    assert.equal((await on(usable, '1.16.1')).name, 'firecracker')
    assert.deepEqual(await on(none, '1.16.1'), {
      name: 'qemu',
      reason: 'Firecracker needs KVM, which is not usable here: no /dev/kvm',
    })
    for (const [version, why] of [
      [undefined, /firecracker is not installed/],
      ['1.2.3', /1\.2\.3 is too old/],
    ] as const) {
      const { name, reason } = await on(usable, version)
      assert.equal(name, 'qemu')
      assert.match(reason, why)
    }
    // Without a jail the VM's own user would have to open the device.
    const refused: Kvm = { usable: true, groups: undefined, reason: 'only root may open it' }
    assert.deepEqual(await on(refused, '1.16.1'), { name: 'qemu', reason: 'only root may open it' })
  })

  it('is what was asked for, whether it can be or not: the start says', async (t) => {
    const tools = await hostWith(t, none)
    assert.equal((await chooseVmm(tools, { vmm: 'firecracker', jailer: 'auto' })).name, 'firecracker')
    assert.equal((await chooseVmm(tools, { vmm: 'qemu', jailer: 'auto' })).name, 'qemu')
  })

  it('is never one without a jail when there must be one', async (t) => {
    const wanted = { vmm: 'auto', jailer: 'on' } as const
    await assert.rejects(
      chooseVmm(await hostWith(t, usable), { vmm: 'qemu', jailer: 'on' }),
      hasCode('bad-request', /a jail, which is for Firecracker/),
    )
    await assert.rejects(
      chooseVmm(await hostWith(t, none), wanted),
      hasCode('host-unsupported', /a jail is for Firecracker/),
    )
    await assert.rejects(chooseVmm(await hostWith(t, usable), wanted), hasCode('host-missing'))
    await assert.rejects(
      chooseVmm(await hostWith(t, usable, '1.16.1'), wanted),
      hasCode('host-unsupported', /cannot put a machine into a jail/),
    )
  })
})
