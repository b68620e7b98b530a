import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { BandSoxError, errorTable, isSystemError, messageOf } from './errors.js'
import { allowedIn, type Operation, requireAllowed, type SandboxState, type StateName } from './state.js'

const since = '2026-01-01T00:00:00.000Z'
const states: SandboxState[] = [
  { kind: 'creating', since },
  { kind: 'running', since },
  { kind: 'paused', since },
  { kind: 'stopping', since },
  { kind: 'stopped', since },
  { kind: 'hibernated', since },
  { kind: 'failed', since, reason: 'the VMM was ended by SIGKILL' },
]
const operations = Object.keys(allowedIn) as Operation[]

describe('the state table', () => {
  it('is what refuses: nothing is allowed beside it, nothing in it is refused', () => {
    for (const operation of operations) {
      for (const state of states) {
        const isAllowed = (allowedIn[operation] as readonly StateName[]).includes(state.kind)
        if (isAllowed) requireAllowed(operation, 'sbx_x', state)
        else
          assert.throws(
            () => requireAllowed(operation, 'sbx_x', state),
            { code: 'wrong-state' },
            `${operation} in ${state.kind}`,
          )
      }
    }
  })

  it('says of a hibernated one what makes the way free', () => {
    for (const [operation, command] of [
      ['limit', 'resume'],
      ['reshape', 'stop'],
    ] as const)
      assert.throws(
        () => requireAllowed(operation, 'sbx_a', { kind: 'hibernated', since }),
        (error: BandSoxError) => error.hint?.endsWith(`: bandsox vm ${command} sbx_a`) === true,
      )
  })

  it('lets commands and files only into what runs', () => {
    assert.deepEqual([allowedIn.exec, allowedIn.transfer, allowedIn.pause], [['running'], ['running'], ['running']])
    assert.deepEqual(allowedIn.resume, ['paused', 'hibernated'])
  })

  it('leaves no state that can be neither stopped nor deleted', () => {
    for (const { kind } of states) {
      const ways: readonly StateName[] = [...allowedIn.stop, ...allowedIn.delete]
      assert.ok(ways.includes(kind), kind)
    }
  })

  it('refuses with the state, its reason, and what would be needed', () => {
    assert.throws(() => requireAllowed('exec', 'sbx_7f2', { kind: 'failed', since, reason: 'it died' }), {
      name: 'BandSoxError',
      message: 'cannot exec sandbox sbx_7f2: it is failed (it died); exec needs: running',
      hint: 'see what it printed: bandsox logs sbx_7f2; start it again: bandsox vm start sbx_7f2',
    })
  })
})

describe('the error table', () => {
  it('gives every code an HTTP status and an exit status of its own kind', () => {
    for (const [code, { http, exit }] of Object.entries(errorTable)) {
      assert.ok(http >= 400 && http <= 599, `${code}: HTTP ${http}`)
      // 1 to 63 are the guest's commands'; 128 and more mean signals, of which 130 is Ctrl-C.
      assert.ok((exit >= 64 && exit <= 78) || [124, 126, 127, 130].includes(exit), `${code}: exit ${exit}`)
    }
  })

  it('has hints of one line without a full stop, so that they print as one', () => {
    for (const [code, { hint }] of Object.entries(errorTable)) {
      if (hint !== undefined) assert.doesNotMatch(hint, /\n|\.$/, code)
    }
  })
})

describe('an error', () => {
  it('carries its code, the hint of its code or a better one, and its cause', () => {
    const cause = new Error('below')
    assert.equal(new BandSoxError('not-found', 'm').hint, 'see what there is: bandsox vm list')
    const exact = new BandSoxError('not-found', 'm', { cause, hint: 'look there' })
    assert.deepEqual(
      [exact.hint, exact.cause, exact.code, exact.name],
      ['look there', cause, 'not-found', 'BandSoxError'],
    )
    assert.equal('cause' in new BandSoxError('not-found', 'm'), false)
  })

  it('has a text, whatever was thrown', () => {
    assert.deepEqual(
      [messageOf(new Error('a')), messageOf('b'), messageOf(undefined), messageOf({})],
      ['a', 'b', 'undefined', '[object Object]'],
    )
  })

  it('of the system is told by its code', () => {
    assert.equal(isSystemError(Object.assign(new Error(), { code: 'ENOENT' }), 'ENOENT'), true)
    assert.equal(isSystemError(Object.assign(new Error(), { code: 'EPERM' }), 'ENOENT'), false)
    for (const thrown of [new Error('ENOENT'), 'ENOENT', { code: 'ENOENT' }, null])
      assert.equal(isSystemError(thrown, 'ENOENT'), false)
  })
})
