/**
 * Takes the daemon's vsock device out of a running machine, and puts one in.
 *
 * QEMU saves no state of a machine that has one, since the daemon's part of it cannot be had; and the guest's memory, which the daemon
 * shares, is another one after a load. Where the kernel's backend is used there is nothing to do.
 */
import { setTimeout as delay } from 'node:timers/promises'
import { BandSoxError, messageOf } from '@bandsox/sdk'
import { z } from 'zod'
import { VHOST_USER_SOCKET, VSOCK_DEVICE, VSOCK_PORT } from './command-line.js'
import type { Qmp } from './qmp.js'

/** An emulated guest takes some 30 ms, on a busy host far longer. */
const GUEST_PATIENCE_MS = 10_000
/** QEMU lets go of the device a moment after it is gone, and the daemon makes its socket anew. */
const SOCKET_PATIENCE_MS = 5_000
const POLL_MS = 2
/**
 * QEMU does not wait until the daemon has read what it is told last of the queues, and a host that connects before ends its only worker:
 * without this pause 10 times of 1238, with hosts that connect all the time.
 */
const SETTLE_MS = 50
/** Of a device that the guest was asked for before, and has not given back yet: QEMU's qdev-monitor.c. */
const BEING_UNPLUGGED = /already in the process of unplug/

const DEVICES = '/machine/peripheral'
const devicesSchema = z.array(z.object({ name: z.string() }))
const chardevsSchema = z.array(z.object({ label: z.string() }))
const statusSchema = z.object({ running: z.boolean(), status: z.string() })
const virtioSchema = z.object({ 'vhost-started': z.boolean() })

type Control = Pick<Qmp, 'execute'>

/** Whether the machine has a device that {@link unplugVsock} would take out. */
export async function hasVsockDevice(qmp: Control): Promise<boolean> {
  const devices = devicesSchema.parse(await qmp.execute('qom-list', { path: DEVICES }))
  return devices.some(({ name }) => name === VSOCK_DEVICE)
}

/**
 * Asks the guest to give the device back. No host may be connected through it any more.
 *
 * @throws `wrong-state` for a machine that stands still; `guest-silent` when the guest keeps it; `vmm-control`.
 */
export async function unplugVsock(qmp: Control): Promise<void> {
  await requireRunning(qmp, 'unplug')
  await qmp.execute('device_del', { id: VSOCK_DEVICE }).catch((error: unknown) => {
    if (!BEING_UNPLUGGED.test(messageOf(error))) throw error // else somebody was interrupted here
  })
  // Asked for, as the news of it may have come before the answer.
  await until(
    async () => !(await hasVsockDevice(qmp)),
    GUEST_PATIENCE_MS,
    () =>
      new BandSoxError('guest-silent', `the guest did not give its vsock device back within ${GUEST_PATIENCE_MS} ms`),
  )
  await persist(() => qmp.execute('chardev-remove', { id: VSOCK_DEVICE }))
}

/**
 * Plugs a device in, and waits until the guest has it in use: then, and not before, hosts may connect.
 *
 * @throws as {@link unplugVsock}.
 */
export async function plugVsock(qmp: Control): Promise<void> {
  await requireRunning(qmp, 'plug in')
  if (!(await hasVsockDevice(qmp))) await addDevice(qmp) // else somebody was interrupted here
  await until(
    () => isInUse(qmp),
    GUEST_PATIENCE_MS,
    () => new BandSoxError('guest-silent', `the guest did not take a vsock device within ${GUEST_PATIENCE_MS} ms`),
  )
  await delay(SETTLE_MS)
}

async function addDevice(qmp: Control): Promise<void> {
  const chardevs = chardevsSchema.parse(await qmp.execute('query-chardev'))
  if (chardevs.some(({ label }) => label === VSOCK_DEVICE)) await qmp.execute('chardev-remove', { id: VSOCK_DEVICE })
  const addr = { type: 'unix', data: { path: VHOST_USER_SOCKET } }
  const backend = { type: 'socket', data: { addr, server: false } }
  await persist(() => qmp.execute('chardev-add', { id: VSOCK_DEVICE, backend }))
  try {
    await qmp.execute('device_add', {
      ...{ driver: 'vhost-user-vsock-pci', id: VSOCK_DEVICE, chardev: VSOCK_DEVICE, bus: VSOCK_PORT },
    })
  } catch (error) {
    await qmp.execute('chardev-remove', { id: VSOCK_DEVICE })
    throw error
  }
}

async function isInUse(qmp: Control): Promise<boolean> {
  // The only word of QEMU's for it; there since 7.2, the oldest that we take.
  const path = `${DEVICES}/${VSOCK_DEVICE}/virtio-backend`
  return virtioSchema.parse(await qmp.execute('x-query-virtio-status', { path }))['vhost-started']
}

async function requireRunning(qmp: Control, what: string): Promise<void> {
  const { running, status } = statusSchema.parse(await qmp.execute('query-status'))
  if (running) return
  throw new BandSoxError('wrong-state', `cannot ${what} the vsock device of a machine that is ${status}`, {
    hint: 'its guest must run to take part: resume it first',
  })
}

async function until(isSo: () => Promise<boolean>, patienceMs: number, late: () => BandSoxError): Promise<void> {
  const deadline = performance.now() + patienceMs
  while (!(await isSo())) {
    if (performance.now() > deadline) throw late()
    await delay(POLL_MS)
  }
}

/** Tries again what is refused for a moment only; then the refusal counts. */
async function persist(attempt: () => Promise<unknown>): Promise<void> {
  const deadline = performance.now() + SOCKET_PATIENCE_MS
  for (;;) {
    try {
      await attempt()
      return
    } catch (error) {
      if (performance.now() > deadline) throw error
      await delay(POLL_MS)
    }
  }
}
