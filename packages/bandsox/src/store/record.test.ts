import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { hasCode } from '../testing/errors.js'
import { sampleRecord } from '../testing/sample-record.js'
import type { SqlRow } from './driver.js'
import { columnsOf, recordOf, type SandboxRecord } from './record.js'

const running: SandboxRecord = sampleRecord({
  name: 'job',
  env: { A: 'b', '': 'odd' },
  labels: { team: 'red' },
  metadata: { list: [1, null, { deep: true }] },
  machine: {
    startedAt: '2026-01-01T00:00:00.000Z',
    vmm: 'qemu',
    version: '7.2.0',
    accelerator: 'tcg',
    acceleratorReason: 'there is no /dev/kvm',
    vsock: { backend: 'daemon', socket: 'vsock.sock' },
    serial: { line: 'port', socket: 'serial.sock' },
  },
  timings: { files: 1 },
  cid: 3,
  port: 9000,
  state: { kind: 'paused', since: '2026-01-01T00:00:00.000Z', reason: "the host's disk is full" },
  operation: {
    name: 'stop',
    since: '2026-01-01T00:00:00.000Z',
    token: 't',
    holder: { pid: 1, startTime: 2, bootId: 'b', pidNamespace: 4 },
  },
})

describe("a sandbox's row", () => {
  it('becomes the record that it was made of', () => {
    for (const record of [sampleRecord(), running]) assert.deepEqual(recordOf(columnsOf(record)), record)
  })

  it('that no code of ours has written is refused, naming the sandbox and the place', () => {
    const row = columnsOf(running)
    const change = (column: string, parts: object): SqlRow => ({
      ...row,
      [column]: JSON.stringify({ ...JSON.parse(String(row[column])), ...parts }), // without those that are undefined
    })
    const cases: [SqlRow, RegExp][] = [
      [{ ...row, vcpu: '1' }, /vcpu: expected a number/],
      [{ ...row, created_at: null }, /created_at: expected text/],
      [{ ...row, state: 'asleep' }, /state: expected one of creating, running/],
      [{ ...row, vsock: undefined }, /vsock: expected one of auto, on, off/],
      [{ ...row, image: '{"reference":' }, /image: expected JSON/],
      [{ ...row, image: null }, /image: expected text/],
      [{ ...row, labels: '[]' }, /labels: expected an object/],
      [{ ...row, metadata: 'null' }, /metadata: expected an object/],
      [{ ...row, env: '{"A":1}' }, /env: A: expected text/],
      [change('image', { config: undefined }), /image: config: expected an object/],
      [change('image', { config: { ...running.image.config, cmd: 'sh' } }), /config\.cmd: expected a list/],
      [change('machine', { vsock: { backend: 'x' } }), /vsock\.backend: expected one of/],
      [change('machine', { serial: { line: 'x' } }), /serial\.line: expected one of port, uart/],
      [change('limits', { cpus: undefined }), /limits: cpus: expected a number/],
      [change('holder', { bootId: undefined }), /holder: bootId: expected text/],
    ]
    for (const [damaged, message] of cases)
      assert.throws(() => recordOf(damaged), hasCode('storage-unusable', message), message.source)
    assert.throws(
      () => recordOf({ ...row, port: 'x' }),
      hasCode('storage-unusable', /sandbox sbx_aaaaaaaaaa is damaged/),
    )
  })
})
