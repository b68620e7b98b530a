import assert from 'node:assert/strict'
import { readdir, rm, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { it } from 'node:test'
import { setTimeout as delay } from 'node:timers/promises'
import { identifySelf, identityText } from '../process/identity.js'
import { hasCode } from '../testing/errors.js'
import { runModule } from '../testing/module-process.js'
import { temporaryFolder } from '../testing/temporary-folder.js'
import { beginFetching, tryCleaning } from './activity.js'

it('many fetch at once, and nobody cleans up meanwhile', async (t) => {
  const locks = await temporaryFolder(t)
  const [first, second] = [await beginFetching(locks), await beginFetching(locks)]
  assert.equal(await tryCleaning(locks), undefined)
  await first()
  assert.equal(await tryCleaning(locks), undefined)
  await second()
  const cleaned = await tryCleaning(locks)
  assert.ok(cleaned)
  await cleaned()
  assert.deepEqual(await readdir(locks), [])
})

it('one cleans up at a time, and who wants to fetch waits for it', async (t) => {
  const locks = await temporaryFolder(t)
  const cleaned = await tryCleaning(locks)
  assert.ok(cleaned)
  assert.equal(await tryCleaning(locks), undefined)
  let hasBegun = false
  const fetching = beginFetching(locks).then((release) => {
    hasBegun = true
    return release
  })
  await delay(150)
  assert.equal(hasBegun, false)
  await cleaned()
  await (await fetching)()
  assert.deepEqual(await readdir(locks), [])
})

it('who waits to fetch is cancelled, and leaves no mark', async (t) => {
  const locks = await temporaryFolder(t)
  const cleaned = await tryCleaning(locks)
  assert.ok(cleaned)
  await assert.rejects(beginFetching(locks, AbortSignal.timeout(50)), { name: 'TimeoutError' })
  assert.deepEqual(await readdir(locks), ['cleaning.lock'])
  await cleaned()
})

it('a process that was killed while it fetched or cleaned up stops nobody', async (t) => {
  for (const call of ['beginFetching', 'tryCleaning']) {
    const locks = await temporaryFolder(t)
    const code = `const { ${call} } = await import(url('./activity.js')); await ${call}(args[0]); console.log('has it')
    await new Promise((done) => setTimeout(done, 60_000))`
    const { child, printed } = runModule(t, import.meta.url, code, [locks])
    await printed('has it')
    assert.equal(await tryCleaning(locks), undefined)
    child.kill('SIGKILL')
    while (child.signalCode === null) await delay(5)
    await (await beginFetching(locks))()
    const cleaned = await tryCleaning(locks)
    assert.ok(cleaned, call)
    await cleaned()
    assert.deepEqual(await readdir(locks), [])
  }
})

it('what another boot left stops nobody, and is removed', async (t) => {
  const locks = await temporaryFolder(t)
  const before = { ...(await identifySelf()), bootId: '0'.repeat(32) }
  await writeFile(join(locks, `fetching-${identityText(before)}-01234567`), '')
  await writeFile(join(locks, `fetching-${2 ** 22 + 1}-1-01234567`), '') // of an earlier version
  const lock = JSON.stringify({ operation: 'clean up images', ...before })
  for (const name of ['cleaning.lock', 'cleaning.lock.0123456789ab']) await writeFile(join(locks, name), lock)
  await (await beginFetching(locks))()
  const cleaned = await tryCleaning(locks)
  assert.ok(cleaned)
  assert.deepEqual(await readdir(locks), ['cleaning.lock'])
  await cleaned()
})

it('who fetches or cleans up in another container is waited for, and it is told what to do when it is gone', async (t) => {
  const locks = await temporaryFolder(t)
  const other = { ...(await identifySelf()), pid: 2 ** 22 + 1, pidNamespace: 1 }
  const mark = join(locks, `fetching-${identityText(other)}-01234567`)
  await writeFile(mark, '')
  const hints: string[] = []
  assert.equal(await tryCleaning(locks, (hint) => hints.push(hint)), undefined)
  assert.match(hints[0] ?? '', /process 4194305 is of another container .* remove .*fetching-.*-01234567$/)
  await rm(mark)
  await writeFile(join(locks, 'cleaning.lock'), JSON.stringify({ operation: 'clean up images', ...other }))
  assert.equal(await tryCleaning(locks, (hint) => hints.push(hint)), undefined)
  assert.match(hints[1] ?? '', /remove .*cleaning\.lock$/)
  await assert.rejects(beginFetching(locks, AbortSignal.timeout(20)), { name: 'TimeoutError' })
  assert.deepEqual(await readdir(locks), ['cleaning.lock'])
})

it('who cannot read the lock leaves no mark', async (t) => {
  const locks = await temporaryFolder(t)
  await writeFile(join(locks, 'cleaning.lock'), '{"holder":"of another version"}')
  await assert.rejects(beginFetching(locks), hasCode('artifact-damaged', /cleaning\.lock/))
  assert.deepEqual(await readdir(locks), ['cleaning.lock'])
})

it('a fetch and a cleaning that begin at once never both go on', async (t) => {
  const locks = await temporaryFolder(t)
  await writeFile(join(locks, 'disk-x.lock'), '')
  let fetching = 0
  let cleanings = 0
  const fetchAndLeave = async () => {
    const release = await beginFetching(locks)
    fetching++
    await delay(1)
    fetching--
    await release()
  }
  const clean = async () => {
    const release = await tryCleaning(locks)
    if (release === undefined) return
    cleanings++
    for (let look = 0; look < 5; look++, await delay(1)) assert.equal(fetching, 0)
    await release()
  }
  for (let round = 0; round < 15; round++) await Promise.all([fetchAndLeave(), clean(), fetchAndLeave(), clean()])
  while (cleanings === 0) await clean()
  assert.deepEqual(await readdir(locks), ['disk-x.lock'])
})
