import assert from 'node:assert/strict'
import { once } from 'node:events'
import { readdir, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import type { BandSoxError } from '@bandsox/sdk'
import { identify, identifySelf } from '../process/identity.js'
import { hasCode } from '../testing/errors.js'
import { runModule } from '../testing/module-process.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { isLockStale, lockOperation, operationInProgress } from './operation-lock.js'

const HOLD = `
  const { lockOperation } = await import(url('./operation-lock.js'))
  await lockOperation(args[0], 'stop')
  console.log('locked')
  setInterval(() => undefined, 1_000)`

describe('the lock of an operation', () => {
  it('is held by one operation at a time, which others are told of', async (t) => {
    const folder = await temporaryFolder(t)
    assert.equal(await operationInProgress(folder), undefined)
    const unlock = await lockOperation(folder, 'stop')
    assert.equal(await operationInProgress(folder), 'stop')
    await assert.rejects(
      lockOperation(folder, 'delete'),
      hasCode('busy', /is busy: stop is in progress \(process \d+\)/),
    )
    await unlock()
    await unlock()
    assert.equal(await operationInProgress(folder), undefined)
    const again = await lockOperation(folder, 'delete')
    await again()
    assert.deepEqual(await readdir(folder), [])
  })

  it('holds between processes, and ends with the process that held it', async (t) => {
    const folder = await temporaryFolder(t)
    const holder = runModule(t, import.meta.url, HOLD, [folder])
    await holder.printed('locked')
    assert.equal(await operationInProgress(folder), 'stop')
    assert.equal(await isLockStale(folder), false)
    await assert.rejects(lockOperation(folder, 'delete'), hasCode('busy', new RegExp(`process ${holder.child.pid}`)))
    holder.child.kill('SIGKILL')
    await once(holder.child, 'close')
    assert.equal(await operationInProgress(folder), undefined)
    assert.equal(await isLockStale(folder), true)
    const unlock = await lockOperation(folder, 'delete')
    assert.equal(await operationInProgress(folder), 'delete')
    await unlock()
    assert.deepEqual(await readdir(folder), [])
  })

  it('of a process whose pid another one has now is taken over', async (t) => {
    const folder = await temporaryFolder(t)
    const self = await identify(process.pid)
    assert.ok(self !== undefined)
    const before = { operation: 'create', pid: self.pid, startTime: self.startTime - 1 }
    await writeFile(path.join(folder, 'operation.lock'), JSON.stringify(before))
    assert.equal(await operationInProgress(folder), undefined)
    await (await lockOperation(folder, 'cleanup'))()
    assert.equal(await isLockStale(folder), false)
  })

  it('of another container says which file to remove when that is gone', async (t) => {
    const folder = await temporaryFolder(t)
    const file = path.join(folder, 'operation.lock')
    const self = await identifySelf()
    await writeFile(file, JSON.stringify({ operation: 'stop', ...self, pid: 2 ** 22 + 1, pidNamespace: 1 }))
    assert.equal(await operationInProgress(folder), 'stop')
    assert.equal(await isLockStale(folder), false)
    await assert.rejects(lockOperation(folder, 'delete'), (error) => {
      assert.ok(hasCode('busy', /stop is in progress \(process 4194305\)/)(error))
      assert.match(
        (error as BandSoxError).hint ?? '',
        /another container .*: when it is gone, remove .*operation\.lock$/,
      )
      return true
    })
  })

  it('of another boot is stale', async (t) => {
    const folder = await temporaryFolder(t)
    const before = { operation: 'stop', ...(await identifySelf()), bootId: '0'.repeat(32) }
    await writeFile(path.join(folder, 'operation.lock'), JSON.stringify(before))
    assert.equal(await operationInProgress(folder), undefined)
    assert.equal(await isLockStale(folder), true)
    await (await lockOperation(folder, 'delete'))()
  })

  it('left by a dead process is taken over by one of many', async (t) => {
    for (let round = 0; round < 10; round++) {
      const folder = await temporaryFolder(t)
      await writeFile(
        path.join(folder, 'operation.lock'),
        JSON.stringify({ operation: 'create', pid: 2 ** 22 + 1, startTime: 1 }),
      )
      const tries = await Promise.allSettled(Array.from({ length: 8 }, () => lockOperation(folder, 'cleanup')))
      const won = tries.filter(({ status }) => status === 'fulfilled')
      assert.equal(won.length, 1)
      for (const each of tries) if (each.status === 'rejected') assert.ok(hasCode('busy')(each.reason))
      assert.deepEqual(await readdir(folder), ['operation.lock'])
    }
  })

  it('is taken over also when the one before died in the middle of taking it over', async (t) => {
    const folder = await temporaryFolder(t)
    const [first, second] = [2 ** 22 + 1, 2 ** 22 + 2]
    await writeFile(
      path.join(folder, 'operation.lock'),
      JSON.stringify({ operation: 'create', pid: first, startTime: 5 }),
    )
    const takeover = path.join(folder, `operation.lock.${first}-5`)
    await writeFile(takeover, JSON.stringify({ operation: 'cleanup', pid: second, startTime: 6 }))
    await (await lockOperation(folder, 'delete'))()
    assert.deepEqual(await readdir(folder), [])
  })

  it('keeps processes apart that want it all the time', async (t) => {
    const folder = await temporaryFolder(t)
    const code = `
      const { lockOperation } = await import(url('./operation-lock.js'))
      const { open, rm } = await import('node:fs/promises')
      const { setTimeout: delay } = await import('node:timers/promises')
      let done = 0
      while (done < 15) {
        let unlock
        try {
          unlock = await lockOperation(args[0], 'work')
        } catch (error) {
          if (error.code !== 'busy') throw error
          await delay(Math.random() * 4)
          continue
        }
        // Made exclusively: a second holder would fail here.
        await (await open(args[0] + '/inside', 'wx')).close()
        await rm(args[0] + '/inside')
        await unlock()
        done++
      }
      console.log('done ' + done)`
    const processes = Array.from({ length: 3 }, () => runModule(t, import.meta.url, code, [folder]))
    assert.deepEqual(await Promise.all(processes.map(({ done }) => done)), ['done 15\n', 'done 15\n', 'done 15\n'])
    assert.deepEqual(await readdir(folder), [])
  })
})
