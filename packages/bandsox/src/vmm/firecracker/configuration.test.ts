import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { defaultLimits } from '../limits.js'
import type { MachineSpec } from '../vmm.js'
import { instanceId, jailerCommand, limitedDrives, vmConfiguration } from './configuration.js'

const noLimits = { diskBytesPerSecond: null, diskOperationsPerSecond: null, cpus: null, processes: null }
const spec: MachineSpec = {
  sandboxId: 'sbx_7f2',
  directory: '/vms/sbx_7f2',
  vcpu: 2,
  memoryMib: 256,
  files: { kernel: 'kernel', initramfs: 'initramfs', root: 'root.squashfs', overlay: 'overlay.ext4' },
  hostname: 'box',
  vsock: 'auto',
  cid: 5,
  port: 9001,
  uid: 1_900_000_002,
  limits: noLimits,
}

describe("Firecracker's configuration of a machine", () => {
  it('has its shape, its disks in the guest’s order, and paths of its own folder alone', () => {
    const { 'boot-source': boot, drives, vsock, 'machine-config': machine, entropy, balloon } = vmConfiguration(spec)
    assert.deepEqual(machine, { vcpu_count: 2, mem_size_mib: 256 })
    assert.deepEqual([boot.kernel_image_path, boot.initrd_path], ['kernel', 'initramfs'])
    assert.deepEqual(
      drives.map((drive) => [drive.drive_id, drive.path_on_host, drive.is_read_only, drive.is_root_device]),
      [
        ['root', 'root.squashfs', true, false],
        ['overlay', 'overlay.ext4', false, false],
      ],
    )
    assert.ok(drives.every((drive) => drive.cache_type === 'Writeback' && !('rate_limiter' in drive)))
    assert.deepEqual(vsock, { guest_cid: 5, uds_path: 'v.sock' })
    assert.deepEqual(entropy, {})
    assert.deepEqual(balloon, { amount_mib: 0, deflate_on_oom: true, stats_polling_interval_s: 1 })
  })

  it('tells kernel and agent what they need, and how the machine ends', () => {
    const words = (vmConfiguration(spec)['boot-source'].boot_args ?? '').split(' ')
    for (const word of [
      ...['console=ttyS0', 'quiet', 'panic=-1', 'reboot=k'],
      ...['bandsox.serial=ttyS0', 'bandsox.port=9001', 'bandsox.hostname=box', 'bandsox.poweroff=reboot'],
    ])
      assert.ok(words.includes(word), word)
    // They weaken the guest's own isolation, and are for emulation alone; SendCtrlAltDel needs the keyboard.
    for (const word of ['mitigations=off', 'nopti', 'i8042.nokbd']) assert.ok(!words.includes(word), word)
  })

  it('leaves vsock out where it is off, and lets an imported root be written', () => {
    assert.equal(vmConfiguration({ ...spec, vsock: 'off' }).vsock, undefined)
    assert.equal(vmConfiguration({ ...spec, isRootWritable: true }).drives[0]?.is_read_only, false)
    assert.equal(vmConfiguration({ ...spec, trackDirtyPages: true })['machine-config']?.track_dirty_pages, true)
  })

  it('limits each disk, from the start and later, until the limit is taken away', () => {
    const { drives } = vmConfiguration({ ...spec, limits: { ...defaultLimits, diskOperationsPerSecond: null } })
    const bandwidth = { size: 200 * 1024 * 1024, refill_time: 1_000 }
    assert.deepEqual(
      drives.map((drive) => drive.rate_limiter),
      [{ bandwidth }, { bandwidth }],
    )
    const none = { size: 0, refill_time: 0 }
    assert.deepEqual(limitedDrives({ cpus: null, diskBytesPerSecond: null, diskOperationsPerSecond: 7 }), [
      { drive_id: 'root', rate_limiter: { bandwidth: none, ops: { size: 7, refill_time: 1_000 } } },
      { drive_id: 'overlay', rate_limiter: { bandwidth: none, ops: { size: 7, refill_time: 1_000 } } },
    ])
  })
})

describe("the jailer's command", () => {
  const made = {
    jailer: '/usr/bin/jailer',
    program: '/vms/sbx_7f2/firecracker',
    base: '/vms/sbx_7f2/jail',
    maxFiles: 4096,
  }

  it('names the machine as Firecracker allows, its user and its place, and hands the rest on', () => {
    const argv = jailerCommand(spec, { ...made, boots: true })
    assert.deepEqual(argv.slice(0, 11), [
      ...['/usr/bin/jailer', '--id', 'sbx-7f2', '--exec-file', '/vms/sbx_7f2/firecracker'],
      ...['--uid', '1900000002', '--gid', '1900000002', '--chroot-base-dir', '/vms/sbx_7f2/jail'],
    ])
    const handedOn = argv.slice(argv.indexOf('--') + 1)
    assert.deepEqual(handedOn.slice(0, 2), ['--api-sock', 'api.sock'])
    assert.deepEqual(handedOn.slice(-2), ['--config-file', 'vm.json'])
    assert.ok(!argv.includes('--netns') && !argv.includes('--new-pid-ns') && !argv.includes('--daemonize'))
  })

  it('has a network namespace where one is handed in, and no configuration for a machine that is loaded', () => {
    const argv = jailerCommand({ ...spec, networkNamespace: '/run/netns/box' }, { ...made, boots: false })
    assert.equal(argv[argv.indexOf('--netns') + 1], '/run/netns/box')
    assert.ok(!argv.includes('--config-file'))
  })

  it('has no letter in an id that Firecracker refuses', () => {
    assert.match(instanceId('sbx_a_b-1'), /^[A-Za-z0-9-]+$/)
  })
})
