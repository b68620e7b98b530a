import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import type { CreateOptions } from '@bandsox/sdk'
import { hasCode } from '../testing/errors.js'
import { checkedShape as checkedShapeFor } from './create-options.js'
import { usualLimits } from './limits.js'

const checkedShape = (options: CreateOptions) => checkedShapeFor(options, usualLimits)

describe('the options of create', () => {
  it('have the documented defaults', () => {
    assert.deepEqual(checkedShape({}), {
      name: undefined,
      unique: false,
      labels: {},
      metadata: {},
      limits: { cpus: null, diskBytesPerSecond: 209_715_200, diskOperationsPerSecond: 5_000 },
      vcpu: 1,
      memoryMib: 256,
      diskMib: 4_096,
      env: {},
      vsock: 'auto',
      bootTimeoutMs: 60_000,
    })
  })

  it('are taken up to their bounds, and refused beyond, by name and figure', () => {
    const bounds = {
      vcpu: [1, 32],
      memoryMib: [64, 1_048_576],
      diskMib: [64, 1_048_576],
      bootTimeoutMs: [1, 3_600_000],
    } as const
    for (const [option, [min, max]] of Object.entries(bounds)) {
      for (const good of [min, max])
        assert.equal({ ...checkedShape({ [option]: good }) }[option as keyof typeof bounds], good)
      for (const bad of [min - 1, max + 1, min + 0.5, Number.NaN, Number.POSITIVE_INFINITY, -min]) {
        assert.throws(
          () => checkedShape({ [option]: bad }),
          hasCode('bad-request', new RegExp(`^${option}: .*from ${min} to ${max}$`)),
          `${option} ${bad}`,
        )
      }
    }
    assert.throws(
      () => checkedShape({ memoryMib: '256' } as unknown as CreateOptions),
      hasCode('bad-request', /memoryMib: "256"/),
    )
  })

  it('take names that are safe everywhere, and no others', () => {
    for (const name of ['a', 'Web-1', '0', 'a.b_c-d', 'x'.repeat(64)]) assert.equal(checkedShape({ name }).name, name)
    for (const name of ['', '-a', '.', '..', '.a', 'a/b', 'a b', 'a\n', 'ä', 'x'.repeat(65), '$(id)', 'a,b', 'a\0']) {
      assert.throws(() => checkedShape({ name }), hasCode('bad-request', /^name: /), JSON.stringify(name))
    }
    assert.throws(() => checkedShape({ name: 'sbx_mine' }), hasCode('bad-request', /ids do/))
  })

  it('take variables that a program can have, and the vsock modes there are', () => {
    assert.deepEqual(checkedShape({ env: { A: '', 'odd name': 'b=c' } }).env, { A: '', 'odd name': 'b=c' })
    for (const env of [{ '': 'x' }, { 'A=B': 'x' }, { 'A\0': 'x' }, { A: 'x\0' }]) {
      assert.throws(() => checkedShape({ env }), hasCode('bad-request', /^env: /))
    }
    for (const vsock of ['auto', 'on', 'off'] as const) assert.equal(checkedShape({ vsock }).vsock, vsock)
    assert.throws(
      () => checkedShape({ vsock: 'yes' } as unknown as CreateOptions),
      hasCode('bad-request', /auto, on, off/),
    )
  })

  it('do not let a value of the environment into the message: it may be a secret', () => {
    assert.throws(
      () => checkedShape({ env: { TOKEN: 'secret\0' } }),
      (error) => error instanceof Error && !error.message.includes('secret'),
    )
  })

  it('take labels and metadata that can be kept and shown, and no others', () => {
    const labels = { env: 'prod', 'a.b/c-d_e': '', x: 'ä ö' }
    assert.deepEqual(checkedShape({ labels }).labels, labels)
    for (const key of ['', '-a', 'a-', 'a b', 'ä', 'x'.repeat(64), '../a'])
      assert.throws(() => checkedShape({ labels: { [key]: 'v' } }), hasCode('bad-request', /^label: /), key)
    for (const value of ['a\nb', '\u001b[31m', 'x'.repeat(256)])
      assert.throws(() => checkedShape({ labels: { k: value } }), hasCode('bad-request', /^label k: /))
    const many = Object.fromEntries(Array.from({ length: 65 }, (_, index) => [`k${index}`, 'v']))
    assert.throws(() => checkedShape({ labels: many }), hasCode('bad-request', /at most 64/))
    const metadata = { a: [1, { b: null }], c: 'd' }
    assert.deepEqual(checkedShape({ metadata }).metadata, metadata)
    const deep = JSON.parse(`${'{"a":'.repeat(20)}1${'}'.repeat(20)}`) as CreateOptions['metadata']
    for (const bad of [deep, { a: 'x'.repeat(65_536) }, { a: undefined }, { a: () => 1 }, { a: Number.NaN }, []])
      assert.throws(() => checkedShape({ metadata: bad } as CreateOptions), hasCode('bad-request', /^metadata: /))
  })

  it('take limits within bounds, and null for none', () => {
    const limits = { cpus: 0.5, diskBytesPerSecond: null, diskOperationsPerSecond: 10 }
    assert.deepEqual(checkedShape({ limits }).limits, limits)
    for (const bad of [
      { cpus: 0 },
      { cpus: -1 },
      { cpus: Number.NaN },
      { diskBytesPerSecond: 1 },
      { diskBytesPerSecond: 70000.5 },
      { diskOperationsPerSecond: 0 },
    ])
      assert.throws(() => checkedShape({ limits: bad }), hasCode('bad-request', /^limits\./), JSON.stringify(bad))
  })

  it('want a name that is to be unique, and variables of a size that a program can have', () => {
    assert.throws(() => checkedShape({ unique: true }), hasCode('bad-request', /unique needs a name/))
    assert.throws(
      () => checkedShape({ env: { A: 'x'.repeat(1_048_576) } }),
      hasCode('bad-request', /at most 1048576 bytes/),
    )
  })
})
