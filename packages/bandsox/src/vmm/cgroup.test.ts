import assert from 'node:assert/strict'
import { existsSync } from 'node:fs'
import { mkdir, readFile, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { cgroupSupport, machineCgroup, removeMachineCgroup, setCpus } from './cgroup.js'
import { defaultLimits } from './limits.js'

const ALL = 'cpuset cpu io memory pids\n'

interface Group {
  controllers?: string
  enabled?: string
  /** It cannot be written to. (Root may write to all that is there; so a file is missing.) */
  foreign?: boolean
}

/** Folders with the files that the kernel gives a group, and this process in one of them. */
async function hierarchy(t: TestScope, own: string, groups: Record<string, Group>) {
  const folder = await temporaryFolder(t)
  const mount = path.join(folder, 'cgroup')
  await mkdir(mount)
  for (const [name, { controllers = ALL, enabled = '', foreign = false }] of Object.entries(groups)) {
    const group = path.join(mount, name)
    await mkdir(group, { recursive: true })
    await writeFile(path.join(group, 'cgroup.controllers'), controllers)
    await writeFile(path.join(group, 'cgroup.subtree_control'), enabled)
    if (!foreign) await writeFile(path.join(group, 'cgroup.procs'), '')
  }
  await writeFile(path.join(folder, 'own'), own)
  return { mount, own: path.join(folder, 'own') }
}

const enabledIn = async (...names: string[]) => await readFile(path.join(...names, 'cgroup.subtree_control'), 'latin1')

describe('control groups', () => {
  it('are made by root below the root group, with the controllers that are missing there', async (t) => {
    const host = { ...(await hierarchy(t, '0::/init\n', { '.': { enabled: 'memory\n' }, bandsox: {} })), isRoot: true }
    assert.deepEqual(await cgroupSupport(host), { usable: true, parent: path.join(host.mount, 'bandsox') })
    assert.equal(await enabledIn(host.mount), '+cpu +pids')
    assert.equal(await enabledIn(host.mount, 'bandsox'), '+cpu +memory +pids')
  })

  it('that are ready are left alone', async (t) => {
    const ready = { enabled: 'cpu io memory pids\n' }
    const host = { ...(await hierarchy(t, '0::/\n', { '.': ready, bandsox: ready })), isRoot: true }
    assert.equal((await cgroupSupport(host)).usable, true)
    assert.equal(await enabledIn(host.mount), ready.enabled)
  })

  it('are made by others in the highest group above them that is theirs', async (t) => {
    const groups = {
      '.': { foreign: true },
      user: { foreign: true },
      'user/service': { enabled: 'memory pids\n' },
      'user/service/bandsox': {},
      'user/service/app/our.scope': {},
    }
    const host = {
      ...(await hierarchy(t, '1:name=systemd:/x\n0::/user/service/app/our.scope\n', groups)),
      isRoot: false,
    }
    const parent = path.join(host.mount, 'user/service/bandsox')
    assert.deepEqual(await cgroupSupport(host), { usable: true, parent })
    assert.equal(await enabledIn(host.mount, 'user/service'), '+cpu')
  })

  it('are not to be had where version 1 is mounted, nothing is ours, or a controller is missing', async (t) => {
    const none = { mount: await temporaryFolder(t), own: '/proc/self/cgroup', isRoot: true }
    const theirs = { '.': { foreign: true }, 'user/session': { foreign: true } }
    const foreign = { ...(await hierarchy(t, '0::/user/session\n', theirs)), isRoot: false }
    const poor = { ...(await hierarchy(t, '0::/\n', { '.': { controllers: 'cpu pids\n' } })), isRoot: true }
    const cases = [
      [none, /^control groups of version 2 are not mounted at /, /unified_cgroup_hierarchy/],
      [foreign, /in the control group \/user\/session, and nothing around it is ours/, /Delegate=yes/],
      [{ ...foreign, own: '/dev/null' }, /of another version/, /Delegate=yes/],
      [poor, /does not have the controllers memory/, /./],
    ] as const
    for (const [host, reason, hint] of cases) {
      const support = await cgroupSupport(host)
      assert.ok(!support.usable)
      assert.match(support.reason, reason)
      assert.match(support.hint, hint)
    }
  })

  it('hold one machine each, within what was asked for', async () => {
    const machine = { sandboxId: 'sbx_a', vcpu: 2, memoryMib: 256, limits: { ...defaultLimits, cpus: 0.5 } }
    assert.deepEqual(machineCgroup('/groups', machine, 'kvm'), {
      folder: '/groups/sbx_a',
      settings: { 'cpu.max': '50000 100000', 'memory.max': String(768 * 1024 * 1024), 'pids.max': '258' },
    })
    const free = { ...machine, limits: { ...defaultLimits, processes: 130 } }
    const { settings } = machineCgroup('/groups', free, 'tcg')
    assert.deepEqual([settings['cpu.max'], settings['pids.max']], ['max 100000', '130'])
    assert.ok(Number(settings['memory.max']) > 1024 ** 3, 'room for translated code')
  })

  it('take another share of the processors at any time, and never less than the kernel allows', async (t) => {
    const folder = await temporaryFolder(t)
    const share = async (cpus: number | null) => {
      await setCpus(folder, cpus)
      return await readFile(path.join(folder, 'cpu.max'), 'latin1')
    }
    assert.deepEqual(
      [await share(1.5), await share(0.001), await share(null)],
      ['150000 100000', '1000 100000', 'max 100000'],
    )
  })

  it('is removed when its shim could not, and nothing else is', async (t) => {
    const root = await temporaryFolder(t)
    const group = path.join(root, 'bandsox', 'sbx_1')
    const other = path.join(root, 'sbx_1')
    for (const folder of [group, other]) await mkdir(folder, { recursive: true })
    await removeMachineCgroup(group, 'sbx_2')
    await removeMachineCgroup(other, 'sbx_1')
    assert.ok(existsSync(group) && existsSync(other))
    await removeMachineCgroup(group, 'sbx_1')
    assert.ok(!existsSync(group))
    await removeMachineCgroup(group, 'sbx_1')
  })
})
