import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { BandSoxError } from '@bandsox/sdk'
import { hasCode } from '../../testing/errors.js'
import { hasVsockDevice, plugVsock, unplugVsock } from './vsock-plug.js'

/** A QEMU that has what it is told to have; its guest takes `turns` questions to do its part. */
function qemuWith({
  status = 'running',
  device = false,
  chardev = false,
  turns = 2,
  busy = 0,
}: {
  status?: string
  device?: boolean
  chardev?: boolean
  turns?: number
  /** How often a chardev is refused before it is not. */
  busy?: number
}) {
  const asked: string[] = []
  const now = { device, chardev, isUnplugging: false, turns, busy }
  const refuseWhileBusy = () => {
    if (now.busy-- > 0) throw new BandSoxError('vmm-control', 'QEMU refused it: busy')
  }
  const commands: Record<string, () => unknown> = {
    'query-status': () => ({ running: status === 'running', status, singlestep: false }),
    'qom-list': () => {
      if (now.isUnplugging && --now.turns < 0) now.device = false
      return [{ name: 'root-disk', type: 'child' }, ...(now.device ? [{ name: 'vsock', type: 'child' }] : [])]
    },
    device_del: () => {
      now.isUnplugging = true
      return {}
    },
    'query-chardev': () => [{ label: 'console' }, ...(now.chardev ? [{ label: 'vsock' }] : [])],
    'chardev-remove': () => {
      refuseWhileBusy()
      now.chardev = false
      return {}
    },
    'chardev-add': () => {
      refuseWhileBusy()
      assert.equal(now.chardev, false)
      now.chardev = true
      return {}
    },
    device_add: () => {
      assert.equal(now.chardev, true)
      now.device = true
      return {}
    },
    'x-query-virtio-status': () => ({ 'vhost-started': --now.turns < 0, name: 'vhost-vsock' }),
  }
  return {
    ...{ asked, now },
    async execute(command: string): Promise<unknown> {
      if (asked.at(-1) !== command) asked.push(command)
      const answer = commands[command]
      assert.ok(answer, command)
      return answer()
    },
  }
}

describe('the vsock device of a running machine', () => {
  it('is taken out when the guest has given it back, with its socket', async () => {
    const qemu = qemuWith({ device: true, chardev: true, busy: 2 })
    assert.equal(await hasVsockDevice(qemu), true)
    await unplugVsock(qemu)
    assert.equal(await hasVsockDevice(qemu), false)
    assert.deepEqual(qemu.asked, ['qom-list', 'query-status', 'device_del', 'qom-list', 'chardev-remove', 'qom-list'])
    assert.equal(qemu.now.chardev, false)
  })

  it('is put in, and is there when the guest has it in use', async () => {
    const qemu = qemuWith({ busy: 2 })
    await plugVsock(qemu)
    assert.ok(qemu.now.device && qemu.now.turns < 0)
    assert.deepEqual(qemu.asked, [
      ...['query-status', 'qom-list', 'query-chardev', 'chardev-add', 'device_add', 'x-query-virtio-status'],
    ])
  })

  it('is put in where somebody was interrupted: what is there is not made again', async () => {
    const after = qemuWith({ device: true, chardev: true })
    await plugVsock(after)
    assert.ok(!after.asked.includes('device_add'))
    const before = qemuWith({ chardev: true })
    await plugVsock(before)
    assert.ok(before.asked.includes('chardev-remove'))
  })

  it('is not touched while the machine stands still', async () => {
    for (const [change, message] of [
      [unplugVsock, /cannot unplug the vsock device of a machine that is paused/],
      [plugVsock, /cannot plug in the vsock device of a machine that is paused/],
    ] as const) {
      const qemu = qemuWith({ status: 'paused', device: change === unplugVsock })
      const error = await change(qemu).catch((thrown: unknown) => thrown)
      assert.ok(hasCode('wrong-state', message)(error))
      assert.match((error as BandSoxError).hint ?? '', /resume it first/)
      assert.deepEqual(qemu.asked, ['query-status'])
    }
  })

  it('is not waited for without end', async (t) => {
    let now = 0
    t.mock.method(performance, 'now', () => (now += 1_000))
    const endless = Number.MAX_SAFE_INTEGER
    await assert.rejects(
      unplugVsock(qemuWith({ device: true, chardev: true, turns: endless })),
      hasCode('guest-silent', /did not give its vsock device back within 10000 ms/),
    )
    await assert.rejects(plugVsock(qemuWith({ turns: endless })), hasCode('guest-silent', /did not take a vsock/))
    await assert.rejects(plugVsock(qemuWith({ busy: endless })), hasCode('vmm-control', /busy/))
  })
})
