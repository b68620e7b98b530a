import assert from 'node:assert/strict'
import { once } from 'node:events'
import { rename, symlink, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import path from 'node:path'
import { describe, it } from 'node:test'
import { isSystemError } from '@bandsox/sdk'
import { openDescriptors } from '../../../testing/descriptors.js'
import { hasCode } from '../../../testing/errors.js'
import { type TestScope, temporaryFolder } from '../../../testing/temporary-folder.js'
import { waitForApi } from './ready.js'

async function listen(t: TestScope, socketPath: string) {
  const server = createServer((socket) => void socket.on('error', () => undefined).resume())
  server.listen(socketPath)
  await once(server, 'listening')
  const close = async () => {
    if (!server.listening) return
    server.close()
    await once(server, 'close')
  }
  t.after(close)
  return close
}

const never = new Promise<never>(() => undefined)

describe("waiting for Firecracker's API socket", () => {
  it('ends as soon as somebody listens', async (t) => {
    const socketPath = path.join(await temporaryFolder(t), 'api.sock')
    const wait = waitForApi(socketPath, { ended: never, timeoutMs: 5_000 })
    const begun = performance.now()
    setTimeout(() => void listen(t, socketPath), 60)
    await wait
    const waitedMs = performance.now() - begun
    assert.ok(waitedMs >= 55 && waitedMs < 2_000, `${waitedMs} ms`)
    await waitForApi(socketPath)
  })

  it('is not deceived by a socket that was left behind', async (t) => {
    const folder = await temporaryFolder(t)
    const close = await listen(t, path.join(folder, 'early.sock'))
    const socketPath = path.join(folder, 'api.sock')
    await rename(path.join(folder, 'early.sock'), socketPath)
    await close()
    await assert.rejects(
      waitForApi(socketPath, { timeoutMs: 30 }),
      hasCode('vmm-control', /does not listen at its API socket .*api\.sock after 30 ms: ECONNREFUSED/),
    )
  })

  it('does not wait for a process that has ended, however it is told', async (t) => {
    const socketPath = path.join(await temporaryFolder(t), 'api.sock')
    const crash = new Error('exit status 1')
    const later = new AbortController()
    setTimeout(() => later.abort(crash), 10)
    const hasEnded = (cause: unknown) => (error: unknown) => {
      hasCode('vmm-failed', /ended before it listened/)(error)
      assert.equal((error as Error).cause, cause)
      return true
    }
    const begun = performance.now()
    const tellings = [
      () => AbortSignal.abort(crash),
      () => later.signal,
      () => Promise.resolve(crash),
      () => Promise.reject(crash),
    ]
    for (const ended of tellings)
      await assert.rejects(waitForApi(socketPath, { ended: ended(), timeoutMs: 60_000 }), hasEnded(crash))
    assert.ok(performance.now() - begun < 5_000)
  })

  it('breaks off with the reason given', async (t) => {
    const socketPath = path.join(await temporaryFolder(t), 'api.sock')
    const given = new AbortController()
    setTimeout(() => given.abort(new Error('enough')), 5)
    await assert.rejects(waitForApi(socketPath, { signal: given.signal }), /enough/)
    await assert.rejects(waitForApi(socketPath, { signal: given.signal }), /enough/)
  })

  it('does not wait for what waiting cannot cure', async (t) => {
    const folder = await temporaryFolder(t)
    await writeFile(path.join(folder, 'file'), '')
    await symlink('loop', path.join(folder, 'loop'))
    await assert.rejects(waitForApi(path.join(folder, 'file', 'api.sock')), (error) => isSystemError(error, 'ENOTDIR'))
    await assert.rejects(waitForApi(path.join(folder, 'loop', 'api.sock')), (error) => isSystemError(error, 'ELOOP'))
  })

  it('leaves nothing behind', async (t) => {
    const folder = await temporaryFolder(t)
    const close = await listen(t, path.join(folder, 'api.sock'))
    await close()
    const before = await openDescriptors()
    await assert.rejects(waitForApi(path.join(folder, 'no.sock'), { timeoutMs: 20 }), hasCode('vmm-control'))
    const closeAgain = await listen(t, path.join(folder, 'api.sock'))
    for (let round = 0; round < 5; round++) await waitForApi(path.join(folder, 'api.sock'))
    await closeAgain()
    while ((await openDescriptors()).length > before.length) await new Promise((resolve) => setImmediate(resolve))
  })
})
