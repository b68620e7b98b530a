import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hasCode } from '../../testing/errors.js'
import type { MachineFacts } from '../vmm.js'
import type { VsockBackend } from './host.js'
import { chooseVsock, qemuDriver, vsockOfLoaded } from './qemu.js'

describe('the vsock of a machine', () => {
  const backend: VsockBackend = { kind: 'daemon', program: '/usr/bin/vhost-device-vsock' }
  const none: VsockBackend = { kind: 'none', reason: 'there is nothing', hint: 'get something' }

  it('is there when it is wanted and there is a backend', () => {
    for (const mode of ['auto', 'on'] as const) assert.deepEqual(chooseVsock(mode, backend), { vsock: backend })
  })

  it('is left out, with the reason, when it is off, or there is no backend and nobody insists', () => {
    assert.deepEqual(chooseVsock('off', backend), { vsock: null, reason: 'vsock is off for this sandbox' })
    assert.deepEqual(chooseVsock('auto', none), { vsock: null, reason: 'there is nothing' })
    assert.throws(() => chooseVsock('on', none), hasCode('vsock-unavailable', /with vsock: there is nothing/))
  })
})

describe('the vsock of a machine that is loaded from a state', () => {
  const daemon: VsockBackend = { kind: 'daemon', program: '/usr/bin/vhost-device-vsock' }

  it('is the kernel’s, else none: the daemon’s only where it is asked for, since the memory is copied for it', () => {
    assert.deepEqual(vsockOfLoaded('on', { kind: 'kernel' }), { vsock: { kind: 'kernel' } })
    assert.equal(vsockOfLoaded('off', daemon).vsock, null)
    const { vsock, reason } = vsockOfLoaded('auto', daemon)
    assert.equal(vsock, null)
    assert.match(reason ?? '', /vhost-device-vsock/)
    assert.deepEqual(vsockOfLoaded('on', daemon), { vsock: daemon })
  })
})

describe('the links of a machine', () => {
  const facts: MachineFacts = { vmm: 'qemu', version: '7.2.0', accelerator: 'tcg', vsock: null }
  const kindsOf = (over: Partial<MachineFacts>) =>
    qemuDriver({ shim: '/no/shim', searchPath: [] })
      .links('/vms/sbx_a', { ...facts, ...over }, 9_000)
      .map(({ kind }) => kind)

  it('are vsock first, then the serial line, each where it is there', () => {
    const vsock = { backend: 'daemon', socket: 'vsock.sock' } as const
    const serial = { line: 'port', socket: 'serial.sock' } as const
    assert.deepEqual(kindsOf({ vsock, serial }), ['vsock', 'serial'])
    assert.deepEqual(kindsOf({ serial }), ['serial'])
    assert.deepEqual(kindsOf({ vsock }), ['vsock'], 'a machine of an earlier version')
  })
})
