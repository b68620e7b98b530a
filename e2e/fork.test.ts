/** Children of a running sandbox: all of them or none, and nothing of theirs is their parent's. */
import assert from 'node:assert/strict'
import { writeFile } from 'node:fs/promises'
import path from 'node:path'
import { after, before, test } from 'node:test'
import type { Sandbox } from 'bandsox'
import { hostMemoryMib } from 'bandsox/internal/sandbox/admission.js'
import { hasCode } from 'bandsox/internal/testing/errors.js'
import { cli } from './support/command-line.js'
import { COUNTER, counted, countsOn, leavesAllAsItWas, type Opened, openWith, output } from './support/snapshots.js'
import { namesIn, type TestStorage, temporaryStorage, until } from './support/storage.js'

const noSettings = { credentialSources: { files: [], environment: {} }, proxy: {} }

let storage: TestStorage
let opened: Opened
let parent: Sandbox

before(async () => {
  storage = await temporaryStorage()
  opened = await openWith(storage.folder)
  parent = await opened.bandsox.create('bandsox/base', { memoryMib: 128, diskMib: 64, name: 'parent', env: { A: '1' } })
  await output(parent, `setsid sh -c '${COUNTER}' > /dev/null 2>&1 < /dev/null & echo parent > /root/file; sync`)
  await until(async () => (await counted(parent).catch(() => 0)) > 3, 'it to count')
})
after(async () => {
  await opened[Symbol.asyncDispose]()
  await storage[Symbol.asyncDispose]()
})

test('children go on where their parent was at one moment, and change nothing of it', async () => {
  const before = await counted(parent)
  const children = await parent.fork({ count: 3, name: 'child', env: { B: '2' }, labels: { is: 'child' } })
  const since = await counted(parent)
  const infos = await Promise.all(children.map((child) => child.info()))
  assert.deepEqual(
    infos.map(({ name }) => name),
    ['child-1', 'child-2', 'child-3'],
  )
  for (const { restoredFrom, labels } of infos) assert.deepEqual([restoredFrom, labels], [parent.id, { is: 'child' }])
  for (const [index, child] of children.entries()) {
    assert.ok((await counted(child)) >= before)
    await countsOn(child)
    assert.equal(await output(child, 'cat /root/file; echo $A$B; hostname'), `parent\n12\nchild-${index + 1}`)
    await output(child, `echo ${index} > /root/file; echo own > /root/own-${index}; sync`)
  }
  await countsOn(parent)
  assert.ok((await counted(parent)) > since)
  assert.equal(await output(parent, 'cat /root/file; ls /root; echo $B'), 'parent\ncount\nfile')
  for (const [index, child] of children.entries())
    assert.equal(await output(child, 'cat /root/file; ls /root'), `${index}\ncount\nfile\nown-${index}`)
  assert.deepEqual(namesIn(`${storage.folder}/snapshots`), [], 'the moment is gone')
  assert.deepEqual(await opened.bandsox.snapshots.list({ templates: true }), [])

  const [first, second, third] = children
  assert.ok(first && second && third)
  const [grandchild] = await first.fork()
  assert.ok(grandchild)
  assert.equal((await grandchild.info()).name, undefined)
  assert.equal(await output(grandchild, 'cat /root/file; echo $A$B'), '0\n12')
  await first.delete({ force: true })
  await countsOn(grandchild)
  await grandchild.stop()
  await grandchild.start()
  assert.equal(await output(grandchild, 'cat /root/own-0'), 'own')
  for (const each of [second, third, grandchild]) await each.delete({ force: true })
})

test('a paused one can be forked, and the command line names the children', async () => {
  await parent.pause()
  const forked = await cli(storage.folder, [
    'vm',
    'fork',
    'parent',
    '-n',
    '2',
    '--name',
    'of-paused',
    '--disk-rate',
    '7',
  ])
  assert.equal(forked.status, 0, forked.stderr)
  assert.match(forked.stdout, /^VM forked: sbx_\w+ \(of-paused-1\)\nVM forked: sbx_\w+ \(of-paused-2\)\n$/)
  assert.equal((await parent.info()).state.kind, 'paused')
  await parent.resume()
  await countsOn(parent)
  for (const name of ['of-paused-1', 'of-paused-2']) {
    const child = await opened.bandsox.get(name)
    await countsOn(child)
    assert.equal((await child.info()).limits.diskBytesPerSecond, 7 * 1024 * 1024)
    await child.delete({ force: true })
  }
})

test('wrong wishes are refused, and a child that cannot be is the end of all', async () => {
  await leavesAllAsItWas(storage.folder, async () => {
    for (const count of [0, -1, 1.5, 101, Number.NaN])
      await assert.rejects(parent.fork({ count }), hasCode('bad-request', new RegExp(`count: ${count} is not allowed`)))
    await assert.rejects(parent.fork({ name: 'no/slash' }), hasCode('bad-request'))
    await assert.rejects(parent.fork({ count: 2, name: 'x'.repeat(63) }), hasCode('bad-request'))
    await assert.rejects(parent.fork({ signal: AbortSignal.abort(new Error('enough')) }), { message: 'enough' })
    await assert.rejects(parent.fork({ bootTimeoutMs: 0 }), hasCode('bad-request'))
  })
  await countsOn(parent)
  await leavesAllAsItWas(storage.folder, async () => {
    const cancel = new AbortController()
    const forking = assert.rejects(parent.fork({ count: 3, signal: cancel.signal }), { message: 'enough' })
    await until(() => namesIn(`${storage.folder}/vms`).length > 2, 'children')
    cancel.abort(new Error('enough'))
    await forking
  })
  await countsOn(parent)
  // Memory for one child, and no more.
  const configFile = path.join(storage.folder, 'config.json')
  await writeFile(configFile, JSON.stringify({ host: { memoryOvercommit: 320 / hostMemoryMib() } }))
  await using few = await openWith(storage.folder, { images: { ...noSettings, configFile } })
  const limited = await few.bandsox.get('parent')
  await leavesAllAsItWas(storage.folder, () =>
    assert.rejects(limited.fork({ count: 3 }), hasCode('host-resource', /no memory for a sandbox of 128 MiB/)),
  )
  const [only] = await limited.fork()
  await only?.delete({ force: true })
  await countsOn(parent)
  await parent.stop()
  await assert.rejects(parent.fork(), hasCode('wrong-state', /fork needs: running, paused/))
  await parent.delete()
  await storage.assertNothingLeft()
})
