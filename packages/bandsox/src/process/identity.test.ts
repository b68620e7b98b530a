import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { copyFile, readFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { identify, identifySelf, identityText, isAlive, isOutOfSight, parseIdentityText } from './identity.js'

describe("a process's identity", () => {
  it('is its pid and start time, and lasts as long as it lives', async (t) => {
    const child = spawn('sleep', ['60'], { stdio: 'ignore' })
    t.after(() => void child.kill('SIGKILL'))
    await once(child, 'spawn')
    const identity = await identify(child.pid ?? 0)
    assert.ok(identity !== undefined)
    assert.equal(identity.pid, child.pid)
    assert.ok(Number.isSafeInteger(identity.startTime) && identity.startTime > 0)
    assert.equal(await isAlive(identity), true)
    assert.equal(await isAlive({ ...identity, startTime: identity.startTime - 1 }), false) // another one with its pid
    child.kill('SIGKILL')
    await once(child, 'exit')
    assert.equal(await isAlive(identity), false)
    assert.equal(await identify(identity.pid), undefined)
  })

  it('is found though its name holds spaces and parentheses', async (t) => {
    const program = path.join(await temporaryFolder(t), 'a) R 1 (b')
    await copyFile('/bin/sleep', program)
    const child = spawn(program, ['60'], { stdio: 'ignore' })
    t.after(() => void child.kill('SIGKILL'))
    await once(child, 'spawn')
    const [odd, own] = [await identify(child.pid ?? 0), await identify(process.pid)]
    assert.ok(odd !== undefined && own !== undefined)
    assert.ok(odd.startTime >= own.startTime)
  })

  it('of a zombie is none', async (t) => {
    // A shell that never waits for its child, whose end it tells before.
    const shell = spawn('/bin/sh', ['-c', 'sleep 0 & echo $!; exec sleep 60'], { stdio: ['ignore', 'pipe', 'ignore'] })
    t.after(() => void shell.kill('SIGKILL'))
    const [line] = await once(shell.stdout, 'data')
    const pid = Number(String(line))
    while (!/\) Z /.test(await readFile(`/proc/${pid}/stat`, 'latin1')))
      await new Promise((resolve) => setImmediate(resolve))
    assert.equal(await identify(pid), undefined)
  })

  it('of a pid that was never there is none', async () => {
    assert.equal(await identify(2 ** 22 + 1), undefined)
  })

  it('of another boot lives no more', async () => {
    const self = await identifySelf()
    assert.equal(await isAlive(self), true)
    assert.equal(await isAlive({ ...self, bootId: '0'.repeat(32) }), false)
    assert.equal(await isAlive({ ...self, bootId: '0'.repeat(32), pidNamespace: 1 }), false)
  })

  it('of another PID namespace is taken for alive, as nobody here can know', async () => {
    const self = await identifySelf()
    assert.equal(await isOutOfSight(self), false)
    const other = { ...self, pid: 2 ** 22 + 1, pidNamespace: self.pidNamespace - 1 }
    assert.equal(await isOutOfSight(other), true)
    assert.equal(await isAlive(other), true)
  })

  it('comes back from the name of a file', async () => {
    const self = await identifySelf()
    assert.deepEqual(parseIdentityText(`${identityText(self)}-0a1b`), self)
    assert.deepEqual(parseIdentityText('12-345-01234567'), { pid: 12, startTime: 345 })
    for (const text of ['', 'x', '12', '12-', '12-x-', '-1-2-3']) assert.equal(parseIdentityText(text), undefined)
  })
})
