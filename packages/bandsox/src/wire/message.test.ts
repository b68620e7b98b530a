import assert from 'node:assert/strict'
import { describe, it } from 'node:test'
import { parseMessage, signalNames } from './message.js'
import { ProtocolError } from './protocol-error.js'

const violation = (name: string) => (error: unknown) => error instanceof ProtocolError && error.violation === name
const toHost = (text: string) => parseMessage(Buffer.from(text), 'to-host')
const toGuest = (text: string) => parseMessage(Buffer.from(text), 'to-guest')

describe('messages', () => {
  it('take integers only as they must be written', () => {
    for (const bad of [
      '1.0',
      '1e3',
      '1E0',
      '-0',
      '0.99999999999999999999',
      '1e400',
      '9007199254740992',
      '-1',
      'null',
      '"1"',
    ]) {
      assert.throws(() => toHost(`{"type":"ack","offset":${bad}}`), violation('message-invalid'), bad)
    }
    assert.deepEqual(toHost('{"type":"ack","offset":9007199254740991}'), {
      type: 'ack',
      offset: Number.MAX_SAFE_INTEGER,
    })
    assert.throws(() => toHost('{"type":"started","pid":1.0}'), violation('message-invalid'))
  })

  it('do not mistake figures inside strings, or in fields that nobody knows, for integers', () => {
    const text = '{"type":"error","code":"-0","message":"1.0 \\"1e3\\" -0","later":[1.5,-0,1e400,{"offset":1.0}]}'
    assert.deepEqual(toHost(text), { type: 'error', code: '-0', message: '1.0 "1e3" -0' })
  })

  it('that are not JSON stay so, however their figures are written', () => {
    for (const bad of ['1.', '01.5', '1.e5', '-', '.5', '1.5.5', '+1.0']) {
      assert.throws(() => toHost(`{"type":"ack","offset":${bad}}`), violation('message-not-json'), bad)
    }
  })

  it('may hold a string as long as a message without trouble for the scan of its figures', () => {
    const message = '\\n'.repeat(2_000)
    const later = '\\"1.0'.repeat(40_000)
    assert.deepEqual(toHost(`{"type":"error","code":"c","message":"${message}","later":"${later}","n":1.0}`), {
      type: 'error',
      code: 'c',
      message: '\n'.repeat(2_000),
    })
  })

  it('count depth from zero again after brackets that close nothing', () => {
    assert.throws(() => toHost(`${']'.repeat(5)}${'['.repeat(17)}`), violation('message-too-deep'))
    assert.throws(() => toHost(`${']'.repeat(5)}${'['.repeat(16)}`), violation('message-not-json'))
  })

  it('have types of the table, not of JavaScript', () => {
    for (const type of ['constructor', '__proto__', 'toString', 'hasOwnProperty']) {
      assert.throws(() => toHost(JSON.stringify({ type })), violation('message-type-unknown'), type)
    }
    assert.throws(() => toHost('{"__proto__":{"type":"pong"},"uptimeMs":1}'), violation('message-type-unknown'))
    assert.throws(() => toHost('{"type":"pong","__proto__":{"uptimeMs":1}}'), violation('message-invalid'))
  })

  it('name variables without an equals sign, and signals that there are', () => {
    assert.throws(() => toGuest('{"type":"exec","shell":"x","env":{"A=B":"c"}}'), violation('message-invalid'))
    assert.throws(() => toGuest('{"type":"signal","signal":"SIGWHAT"}'), violation('message-invalid'))
    assert.throws(() => toGuest('{"type":"signal","signal":"SIGRTMIN+1"}'), violation('message-invalid'))
    assert.equal(new Set(signalNames).size, 31)
    for (const signal of signalNames)
      assert.deepEqual(toGuest(JSON.stringify({ type: 'signal', signal })), { type: 'signal', signal })
  })

  it('check a variable of any name, also one that JavaScript has a use for', () => {
    const named = toGuest('{"type":"exec","shell":"x","env":{"__proto__":"a","constructor":"b"}}')
    assert.ok(named.type === 'exec')
    assert.deepEqual(Object.entries(named.env ?? {}), [
      ['__proto__', 'a'],
      ['constructor', 'b'],
    ])
    assert.throws(() => toGuest('{"type":"exec","shell":"x","env":{"__proto__":{}}}'), violation('message-invalid'))
    const hello = '"protocol":1,"agent":"","bootId":"","capabilities":[],"checksums":["md5"]'
    assert.throws(() => toHost(`{"type":"hello",${hello},"stages":{"__proto__":-1}}`), violation('message-invalid'))
  })

  it('offer a range of protocols that begins where it ends or below', () => {
    assert.throws(() => toGuest('{"type":"hello","protocol":1,"minProtocol":2}'), violation('message-invalid'))
    assert.deepEqual(toGuest('{"type":"hello","protocol":2,"minProtocol":2}'), {
      type: 'hello',
      protocol: 2,
      minProtocol: 2,
    })
  })
})
