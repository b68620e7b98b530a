import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { MachineSpec } from '../vmm.js'
import { type QemuChoice, qemuCommandLine, throttleCommands } from './command-line.js'

const spec: MachineSpec = {
  sandboxId: 'sbx_aaaaaaaaaa',
  directory: '/vms/sbx_aaaaaaaaaa',
  vcpu: 3,
  memoryMib: 512,
  files: { kernel: 'kernel', initramfs: 'initramfs', root: 'root.squashfs', overlay: 'overlay.ext4' },
  hostname: 'box',
  vsock: 'auto',
  cid: 77,
  port: 9_005,
  uid: 1_900_077,
  limits: { diskBytesPerSecond: 1_000_000, diskOperationsPerSecond: 500, cpus: null, processes: null },
}
const choice = (over: Partial<QemuChoice> = {}): QemuChoice => ({
  program: '/usr/bin/qemu',
  accelerator: 'tcg',
  vsock: null,
  serialLine: 'port',
  ...over,
})

/** The values of an option, which is given by its flag and one word behind it. */
const valuesOf = (argv: string[], flag: string) =>
  argv.flatMap((word, index) => (argv[index - 1] === flag ? [word] : []))
const only = (argv: string[], flag: string): string => {
  const values = valuesOf(argv, flag)
  assert.equal(values.length, 1, flag)
  return values[0] ?? ''
}

/** They weaken the guest's own isolation. */
const SPEED_ONLY = ['mitigations=off', 'nopti', 'nokaslr', 'no_timer_check', 'noreplace-smp', 'cryptomgr.notests']

describe("QEMU's command line", () => {
  it('confines QEMU: no children, no devices of its own, no configuration of the user', () => {
    const { argv } = qemuCommandLine(spec, choice())
    assert.equal(argv[0], '/usr/bin/qemu')
    const sandbox = only(argv, '-sandbox').split(',')
    assert.ok(sandbox.includes('on'))
    for (const denied of ['spawn', 'elevateprivileges', 'obsolete', 'resourcecontrol'])
      assert.ok(sandbox.includes(`${denied}=deny`), denied)
    for (const flag of ['-nodefaults', '-no-user-config', '-no-reboot']) assert.ok(argv.includes(flag), flag)
    assert.equal(only(argv, '-display'), 'none')
    for (const flag of ['-monitor', '-vnc', '-net', '-netdev', '-nic', '-usb', '-gdb', '-s', '-virtfs', '-fsdev']) {
      assert.ok(!argv.includes(flag), flag)
    }
  })

  it("keeps a disk that is only to be looked at out of the guest's root", () => {
    const appended = (over: Partial<MachineSpec>) =>
      only(qemuCommandLine({ ...spec, ...over }, choice()).argv, '-append')
    assert.match(appended({}), / bandsox\.overlay=\/dev\/vdb /)
    assert.doesNotMatch(appended({ overlayAsData: true }), /bandsox\.overlay/)
    const { argv } = qemuCommandLine({ ...spec, overlayAsData: true }, choice())
    assert.equal(valuesOf(argv, '-drive').length, 2)
  })

  it('makes a versioned q35 without legacy devices', () => {
    const machine = only(qemuCommandLine(spec, choice()).argv, '-machine').split(',')
    assert.match(machine[0] ?? '', /^pc-q35-\d+\.\d+$/)
    for (const off of ['usb', 'smbus', 'sata', 'vmport', 'i8042', 'graphics'])
      assert.ok(machine.includes(`${off}=off`), off)
    assert.ok(machine.includes('hpet=on'))
  })

  it('has the shape that was asked for', () => {
    const { argv } = qemuCommandLine(spec, choice())
    assert.equal(only(argv, '-smp'), '3')
    assert.equal(only(argv, '-m'), '512M')
    assert.ok(
      valuesOf(argv, '-object').some(
        (object) => object.startsWith('memory-backend-ram,') && object.endsWith('size=512M'),
      ),
    )
  })

  it('gives the kernel what weakens its isolation under emulation only', () => {
    const emulated = only(qemuCommandLine(spec, choice()).argv, '-append').split(' ')
    const accelerated = only(qemuCommandLine(spec, choice({ accelerator: 'kvm' })).argv, '-append').split(' ')
    for (const parameter of SPEED_ONLY) {
      assert.ok(emulated.includes(parameter), parameter)
      assert.ok(!accelerated.includes(parameter), parameter)
    }
    assert.deepEqual(
      emulated.filter((parameter) => !SPEED_ONLY.includes(parameter)),
      accelerated,
    )
    for (const parameter of [
      'bandsox.port=9005',
      'bandsox.hostname=box',
      'bandsox.root=/dev/vda',
      'bandsox.overlay=/dev/vdb',
      'panic=-1',
    ]) {
      assert.ok(accelerated.includes(parameter), parameter)
    }
  })

  it('takes the accelerator that was chosen, with the CPU that belongs to it', () => {
    const emulated = qemuCommandLine(spec, choice()).argv
    const accelerated = qemuCommandLine(spec, choice({ accelerator: 'kvm' })).argv
    assert.deepEqual([only(emulated, '-accel'), only(emulated, '-cpu')], ['tcg,thread=multi', 'max'])
    assert.deepEqual([only(accelerated, '-accel'), only(accelerated, '-cpu')], ['kvm', 'host'])
  })

  it('names only files of its own folder, the image read-only', () => {
    const { argv } = qemuCommandLine(spec, choice({ vsock: 'daemon' }))
    const [root = '', overlay = ''] = valuesOf(argv, '-drive')
    assert.ok(root.includes('file=root.squashfs') && root.includes('readonly=on'))
    assert.ok(overlay.includes('file=overlay.ext4') && !overlay.includes('readonly'))
    assert.deepEqual([only(argv, '-kernel'), only(argv, '-initrd')], ['kernel', 'initramfs'])
    const absolute = argv.slice(1).filter((word) => /(^|[=,])\//.test(word) && !word.includes('/dev/'))
    assert.deepEqual(absolute, [])
    assert.ok(!argv.some((word) => word.includes(spec.directory)))
  })

  it('stops the machine when the disk of the host is full, and lets the guest see any other error', () => {
    const disks = valuesOf(qemuCommandLine(spec, choice()).argv, '-device').filter((device) =>
      /virtio-blk/.test(device),
    )
    assert.equal(disks.length, 2)
    for (const disk of disks) assert.match(disk, /,werror=enospc,rerror=report$/)
  })

  it('throttles both disks as one, with a burst of a second, and not at all without a limit', () => {
    const drives = (limits: Partial<MachineSpec['limits']>) =>
      valuesOf(qemuCommandLine({ ...spec, limits: { ...spec.limits, ...limits } }, choice()).argv, '-drive')
    const bytes = 'throttling.bps-total=1000000,throttling.bps-total-max=1000000'
    const requests = 'throttling.iops-total=500,throttling.iops-total-max=500'
    for (const drive of drives({})) assert.ok(drive.endsWith(`,throttling.group=disks,${bytes},${requests}`), drive)
    for (const drive of drives({ diskBytesPerSecond: null }))
      assert.ok(drive.endsWith(`,throttling.group=disks,${requests}`))
    for (const drive of drives({ diskBytesPerSecond: null, diskOperationsPerSecond: null }))
      assert.ok(!drive.includes('throttling'))
  })

  it('puts layers over a disk that is only read, each over what we say, and writes the last alone', () => {
    const flat = qemuCommandLine(spec, choice()).argv
    const { argv } = qemuCommandLine({ ...spec, layers: ['layer-1.qcow2', 'layer-2.qcow2'] }, choice())
    const lower = 'read-only=on,auto-read-only=off,file.driver=file,file.filename='
    assert.deepEqual(valuesOf(argv, '-blockdev'), [
      `driver=raw,node-name=layer0,${lower}overlay.ext4`,
      `driver=qcow2,backing=layer0,node-name=layer1,${lower}layer-1.qcow2`,
    ])
    const [, top = ''] = valuesOf(argv, '-drive')
    assert.ok(top.startsWith('id=overlay,file=layer-2.qcow2,format=qcow2,backing=layer1,discard=unmap,'), top)
    assert.ok(top.includes('throttling.group=disks') && !top.includes('readonly'), top)
    assert.deepEqual(valuesOf(argv, '-device'), valuesOf(flat, '-device'), 'for the guest it is the same')
    const one = qemuCommandLine({ ...spec, layers: ['layer-1.qcow2'] }, choice()).argv
    assert.equal(valuesOf(one, '-blockdev').length, 1)
    assert.ok(valuesOf(one, '-drive')[1]?.includes('file=layer-1.qcow2,format=qcow2,backing=layer0,'))
    assert.deepEqual(qemuCommandLine({ ...spec, layers: [] }, choice()).argv, flat)
  })

  it('changes the limits of both disks, by the same names', () => {
    const devices = valuesOf(qemuCommandLine(spec, choice()).argv, '-device')
    const commands = throttleCommands({ diskBytesPerSecond: 7, diskOperationsPerSecond: null })
    assert.equal(commands.length, 2)
    for (const { id, bps, bps_max, iops, iops_max, group } of commands) {
      const name = /^\/machine\/peripheral\/(.+)\/virtio-backend$/.exec(String(id))?.[1]
      assert.ok(name !== undefined && devices.some((device) => device.includes(`,id=${name},`)), String(id))
      assert.deepEqual([bps, bps_max, iops, iops_max, group], [7, 7, 0, undefined, 'disks'])
    }
  })

  it("lets the kernel write to a root disk that is the machine's own", () => {
    const files = { ...spec.files, root: 'root.ext4' }
    const { argv } = qemuCommandLine({ ...spec, files, isRootWritable: true }, choice())
    const [root = ''] = valuesOf(argv, '-drive')
    assert.ok(root.includes('file=root.ext4') && root.includes('readonly=off'))
  })

  it('counts the inherited descriptors from 3, in the order in which the shim opens them', () => {
    const { argv, files } = qemuCommandLine(spec, choice({ vsock: 'kernel' }))
    const fdOf = (id: string) =>
      Number(/fd=(\d+)/.exec(valuesOf(argv, '-chardev').find((value) => value.includes(`id=${id},`)) ?? '')?.[1])
    const listening = ['qmp.sock', 'events.sock', 'agent.sock'].map((listen) => ({ listen }))
    assert.deepEqual(files, [...listening, { open: '/dev/vhost-vsock' }])
    assert.deepEqual([fdOf('qmp'), fdOf('events'), fdOf('agent')], [3, 4, 5])
    assert.ok(valuesOf(argv, '-device').includes('vhost-vsock-pci,guest-cid=77,vhostfd=6'))
  })

  it('has one port for the agent, or no virtio-serial at all where the UART is the line', () => {
    const serialOf = (serialLine: QemuChoice['serialLine']) => {
      const { argv, files } = qemuCommandLine(spec, choice({ serialLine }))
      const devices = valuesOf(argv, '-device').filter((device) => device.includes('serial'))
      const named = only(argv, '-append')
        .split(' ')
        .filter((parameter) => parameter.startsWith('bandsox.serial='))
      return { devices, named, isListened: files.some((file) => 'listen' in file && file.listen === 'agent.sock') }
    }
    assert.deepEqual(serialOf('port'), {
      devices: ['virtio-serial-pci,max_ports=2', 'virtserialport,chardev=agent,name=bandsox.agent'],
      named: ['bandsox.serial=bandsox.agent'],
      isListened: true,
    })
    assert.deepEqual(serialOf('uart'), { devices: [], named: ['bandsox.serial=ttyS0'], isListened: false })
  })

  it('shares the memory with the vsock daemon only', () => {
    const memoryOf = (over: Partial<QemuChoice>) => valuesOf(qemuCommandLine(spec, choice(over)).argv, '-object')[0]
    assert.match(memoryOf({ vsock: 'daemon' }) ?? '', /^memory-backend-memfd,share=on,/)
    for (const vsock of ['kernel', null] as const)
      assert.match(memoryOf({ vsock }) ?? '', /^memory-backend-ram,(?!.*share)/)
  })

  it('maps the memory of a state privately, and reads the devices from a descriptor', () => {
    const load = { memory: 'loaded/memory', devices: 'loaded/devices' }
    const { argv, files } = qemuCommandLine(spec, choice({ load, vsock: 'kernel' }))
    const [memory = ''] = valuesOf(argv, '-object')
    assert.equal(memory, 'memory-backend-file,mem-path=loaded/memory,share=off,id=ram0,size=512M')
    assert.deepEqual(files.at(-1), { read: 'loaded/devices' })
    assert.equal(only(argv, '-incoming'), `fd:${3 + files.length - 1}`)
    // All else is as where it was saved.
    const booted = qemuCommandLine(spec, choice({ vsock: 'kernel' })).argv
    const withoutState = argv.filter((word) => !/^(-incoming|fd:\d+|memory-backend.*)$/.test(word))
    assert.deepEqual(
      withoutState,
      booted.filter((word) => !word.startsWith('memory-backend')),
    )
  })

  it('has a vsock device only when there is a backend', () => {
    const devices = (vsock: QemuChoice['vsock']) =>
      valuesOf(qemuCommandLine(spec, choice({ vsock })).argv, '-device').filter((device) => device.includes('vsock'))
    const port = 'pcie-root-port,id=vsock-port,chassis=1,slot=1'
    assert.deepEqual(devices(null), [port], 'there is a place for it')
    assert.deepEqual(devices('daemon'), [port, 'vhost-user-vsock-pci,id=vsock,chardev=vsock,bus=vsock-port'])
    const later = qemuCommandLine(spec, choice({ vsock: 'daemon', plugsVsockLater: true })).argv
    assert.ok(!valuesOf(later, '-chardev').some((chardev) => chardev.includes('vsock')))
    assert.deepEqual(valuesOf(later, '-device'), valuesOf(qemuCommandLine(spec, choice()).argv, '-device'))
    assert.deepEqual(devices('kernel'), [port, 'vhost-vsock-pci,guest-cid=77,vhostfd=6'])
    assert.equal(qemuCommandLine(spec, choice()).files.length, 3)
  })
})
