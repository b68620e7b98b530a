import assert from 'node:assert/strict'
import { once } from 'node:events'
import { watch } from 'node:fs'
import { readdir, readFile, rename, rm, writeFile } from 'node:fs/promises'
import path from 'node:path'
import { describe, it } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { hasCode } from '../testing/errors.js'
import { type TestScope, temporaryFolder } from '../testing/temporary-folder.js'
import { identifySelf } from './identity.js'
import { lockHolder, outOfSightHint, removeDeadClaims, tryLockFile, waitForLockFile } from './lock-file.js'

const DEAD = { operation: 'work', pid: 2 ** 22 + 1, startTime: 1 }
const OTHER_BOOT = '0'.repeat(32)

const lockIn = async (t: TestScope) => path.join(await temporaryFolder(t), 'l.lock')
const write = (file: string, content: unknown) => writeFile(file, JSON.stringify(content))

async function take(file: string): Promise<() => Promise<void>> {
  const attempt = await tryLockFile(file, 'work')
  assert.ok('release' in attempt)
  return attempt.release
}

describe('a lock file', () => {
  it('names its holder, for other boots and containers too', async (t) => {
    const file = await lockIn(t)
    const release = await take(file)
    assert.deepEqual(await lockHolder(file), { operation: 'work', ...(await identifySelf()) })
    await release()
    assert.equal(await lockHolder(file), undefined)
  })

  it('is not touched, nor is anything beside it, by who waits for it', async (t) => {
    const file = await lockIn(t)
    const release = await take(file)
    const seen: (string | null)[] = []
    const watcher = watch(path.dirname(file), (_, name) => seen.push(name))
    t.after(() => watcher.close())
    let told = 0
    const waiting = waitForLockFile(file, 'wait', { onWait: () => told++, signal: AbortSignal.timeout(300) })
    await assert.rejects(waiting, { name: 'TimeoutError' })
    await write(path.join(path.dirname(file), 'end'), '')
    while (!seen.includes('end')) await once(watcher, 'change')
    assert.deepEqual([seen.filter((name) => name !== 'end'), told], [[], 1])
    await release()
  })

  it('goes to who waits when it is released', async (t) => {
    const file = await lockIn(t)
    const release = await take(file)
    const taken = await new Promise<() => Promise<void>>((resolve, reject) => {
      const onWait = () => release().catch(reject)
      waitForLockFile(file, 'wait', { onWait }).then(resolve, reject)
    })
    await taken()
    assert.deepEqual(await readdir(path.dirname(file)), [])
  })

  it('that is released twice is not taken from the next one', async (t) => {
    const file = await lockIn(t)
    const release = await take(file)
    await release()
    const next = await take(file)
    await release()
    assert.ok('holder' in (await tryLockFile(file, 'work')))
    await next()
  })

  it('of another boot is free, though its process seems to be alive', async (t) => {
    const file = await lockIn(t)
    await write(file, { operation: 'work', ...(await identifySelf()), bootId: OTHER_BOOT })
    await (await take(file))()
    assert.deepEqual(await readdir(path.dirname(file)), [])
  })

  it('of another PID namespace is held, and it is told what to do when it is not', async (t) => {
    const file = await lockIn(t)
    const { bootId } = await identifySelf()
    const holder = { ...DEAD, bootId, pidNamespace: 1 }
    await write(file, holder)
    assert.deepEqual(await tryLockFile(file, 'work'), { holder })
    assert.match(
      (await outOfSightHint(file, holder)) ?? '',
      /process 4194305 is of another container .* remove .*l\.lock$/,
    )
    const hints: (string | undefined)[] = []
    const onWait = (_: unknown, hint: string | undefined) => hints.push(hint)
    await assert.rejects(waitForLockFile(file, 'wait', { onWait, signal: AbortSignal.timeout(20) }))
    assert.match(hints[0] ?? '', /l\.lock$/)
    await rm(file)
    await (await take(file))()
  })

  it('of an earlier version tells pid and start time alone', async (t) => {
    const file = await lockIn(t)
    const { pid, startTime } = await identifySelf()
    await write(file, { operation: 'work', pid, startTime })
    const attempt = await tryLockFile(file, 'work')
    assert.ok('holder' in attempt)
    assert.equal(await outOfSightHint(file, attempt.holder), undefined)
    await write(file, DEAD)
    await (await take(file))()
  })

  it('that a loss of power left empty is free for one of many', async (t) => {
    const file = await lockIn(t)
    await writeFile(file, '')
    const attempts = await Promise.all(Array.from({ length: 8 }, () => tryLockFile(file, 'work')))
    assert.equal(attempts.filter((attempt) => 'release' in attempt).length, 1)
    assert.deepEqual(await readdir(path.dirname(file)), ['l.lock'])
  })

  it('of a version that writes another one is nobody else to judge', async (t) => {
    const file = await lockIn(t)
    await write(file, { holder: 'somebody' })
    await assert.rejects(tryLockFile(file, 'work'), hasCode('artifact-damaged', /l\.lock/))
    assert.deepEqual(await readdir(path.dirname(file)), ['l.lock'])
  })

  it('loses the claims of dead processes, and no others', async (t) => {
    const file = await lockIn(t)
    const release = await take(file)
    const living = await readFile(file, 'utf8')
    await writeFile(`${file}.aaaa`, living)
    await writeFile(`${file}.bbbb`, '')
    await write(`${file}.cccc`, DEAD)
    await write(`${file}.dddd`, { ...DEAD, pid: process.pid, bootId: OTHER_BOOT })
    await write(path.join(path.dirname(file), 'other.lock.eeee'), DEAD)
    await removeDeadClaims(file)
    assert.deepEqual(await readdir(path.dirname(file)), ['l.lock', 'l.lock.aaaa', 'l.lock.bbbb', 'other.lock.eeee'])
    await release()
  })

  it('is taken over by one at a time when its holders die all the time', async (t) => {
    const file = await lockIn(t)
    let inside = 0
    const work = async () => {
      for (let round = 0; round < 20; ) {
        const attempt = await tryLockFile(file, 'work')
        if ('holder' in attempt) {
          await delay(1)
          continue
        }
        assert.equal(++inside, 1)
        await delay(1)
        inside--
        round++
        // As if it had died: another process and another boot each time, under the same pid.
        const bootId = round % 2 === 0 ? OTHER_BOOT : '1'.repeat(32)
        const left = `${file}-left`
        await rm(left, { force: true })
        await write(left, { ...DEAD, bootId })
        await rename(left, file)
      }
    }
    await Promise.all([work(), work(), work(), work()])
  })
})
